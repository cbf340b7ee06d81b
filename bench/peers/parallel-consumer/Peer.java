import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelConsumerOptions.CommitMode;
import io.confluent.parallelconsumer.ParallelConsumerOptions.ProcessingOrder;
import io.confluent.parallelconsumer.vertx.VertxParallelEoSStreamProcessor;
import io.vertx.core.Vertx;
import io.vertx.core.VertxOptions;
import io.vertx.core.buffer.Buffer;
import io.vertx.ext.web.client.predicate.ResponsePredicate;
import java.net.URI;
import java.time.Duration;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/** Posts the value of every record of a topic to a URL, by Parallel Consumer's Vert.x module. */
public final class Peer {
    /** How many records it holds to choose from. By default the Vert.x module holds twice the concurrency, for good. */
    private static final int BUFFER = 10_000;

    private static final Duration DRAIN = Duration.ofSeconds(30);

    private Peer() {}

    public static void main(String[] arguments) {
        var url = URI.create(variable("BENCH_URL"));
        var port = url.getPort() < 0 ? 80 : url.getPort();
        var path = url.getRawPath().isEmpty() ? "/" : url.getRawPath();
        var target = url.getRawQuery() == null ? path : path + "?" + url.getRawQuery();

        var consumer = new KafkaConsumer<byte[], byte[]>(Map.of(
                ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, variable("BENCH_BROKERS"),
                ConsumerConfig.GROUP_ID_CONFIG, variable("BENCH_GROUP"),
                ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest",
                ConsumerConfig.ENABLE_AUTO_COMMIT_CONFIG, false,
                ConsumerConfig.KEY_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class,
                ConsumerConfig.VALUE_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class));
        var options = ParallelConsumerOptions.<byte[], byte[]>builder()
                .consumer(consumer)
                .ordering(ProcessingOrder.valueOf(variable("BENCH_ORDERING").toUpperCase(Locale.ROOT)))
                .maxConcurrency(Integer.parseInt(variable("BENCH_CONCURRENCY")))
                .messageBufferSize(BUFFER)
                .commitMode(CommitMode.PERIODIC_CONSUMER_ASYNCHRONOUS)
                .build();
        // Without a web client of ours the module makes one whose pool is as large as the concurrency.
        var vertx = Vertx.vertx(new VertxOptions().setPreferNativeTransport(true));
        var processor = new VertxParallelEoSStreamProcessor<byte[], byte[]>(vertx, null, options);

        var inFlight = new AtomicInteger();
        processor.addVertxOnCompleteHook(inFlight::decrementAndGet);
        processor.subscribe(List.of(variable("BENCH_TOPIC")));
        processor.vertxHttpWebClient(
                (client, context) -> {
                    inFlight.incrementAndGet();
                    return client
                            .post(port, url.getHost(), target)
                            .putHeader("content-type", "application/json")
                            .expect(ResponsePredicate.SC_OK)
                            .sendBuffer(Buffer.buffer(context.value()));
                },
                sent -> {});
        Runtime.getRuntime().addShutdownHook(new Thread(() -> close(processor, inFlight), "close"));
    }

    /**
     * Closing waits for the thread that starts calls, not for the calls; draining first would make all the calls of the
     * buffer. So this lets no more calls start, waits for those in flight, and closes then, which commits them.
     */
    private static void close(VertxParallelEoSStreamProcessor<byte[], byte[]> processor, AtomicInteger inFlight) {
        processor.pauseIfRunning();
        var deadline = System.nanoTime() + DRAIN.toNanos();
        // A few calls may have been handed over just before the pause, so a single 0 does not say enough.
        for (var idle = 0; idle < 5 && System.nanoTime() < deadline; idle = inFlight.get() == 0 ? idle + 1 : 0) {
            try {
                Thread.sleep(10);
            } catch (InterruptedException e) {
                break;
            }
        }
        processor.closeDontDrainFirst();
    }

    private static String variable(String name) {
        var value = System.getenv(name);
        if (value == null) {
            System.err.println(name + " is not set");
            System.exit(2);
        }
        return value;
    }
}
