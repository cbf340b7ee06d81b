// One record by Kafka's own Java client, for scripts/codecs. Run as a source file.
//
// Codecs BROKERS produce TOPIC CODEC   writes one record
// Codecs BROKERS consume TOPIC COUNT   prints that many records, or fails within 20 s

import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

public class Codecs {
    static final Duration LIMIT = Duration.ofSeconds(20);

    public static void main(String[] args) throws Exception {
        if (args[1].equals("produce")) {
            produce(args[0], args[2], args[3]);
        } else {
            consume(args[0], args[2], Integer.parseInt(args[3]));
        }
    }

    static void produce(String brokers, String topic, String codec) throws Exception {
        Map<String, Object> config = Map.of("bootstrap.servers", brokers, "compression.type", codec, "acks", "all",
                "delivery.timeout.ms", 20000, "request.timeout.ms", 10000);
        String value = "{\"jobID\":\"java-" + codec + "\",\"jobType\":\"tool-call\",\"payload\":{\"tool\":\"t\"},\"pad\":\""
                + "x".repeat(1000) + "\"}";
        try (var producer = new KafkaProducer<>(config, new StringSerializer(), new StringSerializer())) {
            producer.send(new ProducerRecord<>(topic, value)).get();
        }
    }

    static void consume(String brokers, String topic, int count) {
        Map<String, Object> config = Map.of("bootstrap.servers", brokers, "auto.offset.reset", "earliest",
                "enable.auto.commit", false, "group.id", "codecs-" + UUID.randomUUID());
        long end = System.nanoTime() + LIMIT.toNanos();
        try (var consumer = new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer())) {
            consumer.subscribe(List.of(topic));
            while (count > 0) {
                if (System.nanoTime() > end) {
                    throw new IllegalStateException(count + " records are missing");
                }
                for (var record : consumer.poll(Duration.ofMillis(500))) {
                    System.out.println(record.value().substring(0, Math.min(120, record.value().length())));
                    count--;
                }
            }
        }
    }
}
