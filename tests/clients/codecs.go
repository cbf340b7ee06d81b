// One record by franz-go, for scripts/codecs.
//
// codecs BROKERS produce TOPIC CODEC   writes one record
// codecs BROKERS consume TOPIC COUNT   prints that many records, or fails within 20 s
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

func main() {
	log.SetFlags(0)
	brokers, action, topic, argument := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()

	codecs := map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}
	options := []kgo.Opt{kgo.SeedBrokers(strings.Split(brokers, ",")...)}
	if action == "produce" {
		options = append(options, kgo.ProducerBatchCompression(codecs[argument]))
	} else {
		options = append(options, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	if action == "produce" {
		value := fmt.Sprintf(`{"jobID":"franz-go-%s","jobType":"tool-call","payload":{"tool":"t"},"pad":"%s"}`,
			argument, strings.Repeat("x", 1000))
		record := &kgo.Record{Topic: topic, Value: []byte(value)}
		if err := client.ProduceSync(ctx, record).FirstErr(); err != nil {
			log.Fatal(err)
		}
		return
	}
	left, _ := strconv.Atoi(argument)
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			log.Fatal(err)
		}
		fetches.EachRecord(func(record *kgo.Record) {
			fmt.Println(string(record.Value[:min(120, len(record.Value))]))
			left--
		})
	}
}
