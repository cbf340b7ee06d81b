// Records with every codec by franz-go, for tests/tests/codecs.rs.
//
// codecs BROKERS produce PREFIX CODEC,…         writes a record with each codec to PREFIX-CODEC
// codecs BROKERS consume PREFIX CODEC=COUNT,…   prints `CODEC PRODUCER` for each record found there
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

var codecs = map[string]kgo.CompressionCodec{
	"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
	"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

func main() {
	log.SetFlags(0)
	brokers, action, prefix, wanted := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	for _, word := range strings.Split(wanted, ",") {
		codec, count, _ := strings.Cut(word, "=")
		topic := prefix + "-" + codec
		if action == "produce" {
			produce(brokers, topic, codec)
		} else {
			left, err := strconv.Atoi(count)
			if err != nil {
				log.Fatal(err)
			}
			consume(brokers, topic, codec, left)
		}
	}
}

func connect(brokers string, options ...kgo.Opt) (*kgo.Client, context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	client, err := kgo.NewClient(append(options, kgo.SeedBrokers(strings.Split(brokers, ",")...))...)
	if err != nil {
		log.Fatal(err)
	}
	return client, ctx, cancel
}

func produce(brokers, topic, codec string) {
	client, ctx, cancel := connect(brokers, kgo.ProducerBatchCompression(codecs[codec]))
	defer cancel()
	defer client.Close()
	record := &kgo.Record{Topic: topic, Value: []byte("franz-go " + strings.Repeat("x", 100_000))}
	if err := client.ProduceSync(ctx, record).FirstErr(); err != nil {
		log.Fatal(codec, ": ", err)
	}
}

func consume(brokers, topic, codec string, left int) {
	start := kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())
	client, ctx, cancel := connect(brokers, kgo.ConsumeTopics(topic), start)
	defer cancel()
	defer client.Close()
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			log.Print(codec, ": ", err)
			return
		}
		fetches.EachRecord(func(record *kgo.Record) {
			fmt.Println(codec, strings.Fields(string(record.Value))[0])
			left--
		})
	}
}
