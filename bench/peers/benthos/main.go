// A peer of the benchmark: Benthos as it ships, with all connections to the endpoint kept open. ../README.md says why.
package main

import (
	"context"
	"net/http"
	"os"
	"strconv"

	"github.com/Jeffail/benthos/v3/public/service"

	// The input kafka_franz is registered by this package only; the one that does it is internal.
	_ "github.com/Jeffail/benthos/v3/public/components/all"
)

func main() {
	// The output http_client uses Go's default transport, which keeps 2 idle connections per host and closes the others.
	if concurrency, err := strconv.Atoi(os.Getenv("BENCH_CONCURRENCY")); err == nil {
		transport := http.DefaultTransport.(*http.Transport)
		transport.MaxIdleConns = 0 // no limit
		transport.MaxIdleConnsPerHost = concurrency
	}
	service.RunCLI(context.Background())
}
