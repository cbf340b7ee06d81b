// Records with every codec by Kafka's own Java client, for tests/tests/codecs.rs. Run as a source file.
//
// Codecs BROKERS produce PREFIX CODEC,…         writes a record with each codec to PREFIX-CODEC
// Codecs BROKERS consume PREFIX CODEC=COUNT,…   prints `CODEC PRODUCER` for each record found there

import java.time.Duration;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

public class Codecs {
    static final Duration LIMIT = Duration.ofSeconds(20);

    public static void main(String[] args) throws Exception {
        for (String word : args[3].split(",")) {
            String[] pair = word.split("=");
            if (args[1].equals("produce")) {
                produce(args[0], args[2] + "-" + pair[0], pair[0]);
            } else {
                consume(args[0], args[2] + "-" + pair[0], pair[0], Integer.parseInt(pair[1]));
            }
        }
    }

    static void produce(String brokers, String topic, String codec) throws Exception {
        Map<String, Object> config = Map.of("bootstrap.servers", brokers, "compression.type", codec, "acks", "all",
                "delivery.timeout.ms", 20000, "request.timeout.ms", 10000);
        try (var producer = new KafkaProducer<>(config, new StringSerializer(), new StringSerializer())) {
            producer.send(new ProducerRecord<>(topic, "java " + "x".repeat(100_000))).get();
        }
    }

    static void consume(String brokers, String topic, String codec, int count) {
        Map<String, Object> config = Map.of("bootstrap.servers", brokers, "enable.auto.commit", false);
        long end = System.nanoTime() + LIMIT.toNanos();
        try (var consumer = new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer())) {
            var partitions = List.of(new TopicPartition(topic, 0));
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            while (count > 0 && System.nanoTime() < end) {
                for (var record : consumer.poll(Duration.ofMillis(500))) {
                    System.out.println(codec + " " + record.value().split(" ")[0]);
                    count--;
                }
            }
        } catch (KafkaException error) {
            System.err.println(codec + " " + error);
        }
    }
}
