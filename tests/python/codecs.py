"""Records with every codec by kafka-python or confluent-kafka, for tests/tests/codecs.rs.

codecs.py CLIENT BROKERS produce PREFIX CODEC,…         writes a record with each codec to PREFIX-CODEC
codecs.py CLIENT BROKERS consume PREFIX CODEC=COUNT,…   prints `CODEC PRODUCER` for each record found there
"""

import sys

PAD = "x" * 100_000
LIMIT = 20


def value(client):
    return f"{client} {PAD}".encode()


def report(codec, value):
    print(codec, value.decode().split()[0])


def kafka_python(brokers, action, prefix, wanted):
    from kafka import KafkaConsumer, KafkaProducer, TopicPartition

    for codec, count in wanted:
        topic = f"{prefix}-{codec}"
        if action == "produce":
            compression = None if codec == "none" else codec
            producer = KafkaProducer(bootstrap_servers=brokers, compression_type=compression, acks="all")
            producer.send(topic, value("kafka-python")).get(timeout=LIMIT)
            producer.close()
            continue
        consumer = KafkaConsumer(
            bootstrap_servers=brokers, group_id=None, auto_offset_reset="earliest",
            enable_auto_commit=False, consumer_timeout_ms=LIMIT * 1000,
        )
        consumer.assign([TopicPartition(topic, 0)])
        for found, record in enumerate(consumer, 1):
            report(codec, record.value)
            if found == count:
                break
        consumer.close()


def confluent(brokers, action, prefix, wanted):
    from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

    for codec, count in wanted:
        topic = f"{prefix}-{codec}"
        if action == "produce":
            producer = Producer({"bootstrap.servers": brokers, "compression.type": codec, "acks": "all"})
            failures = []
            producer.produce(topic, value("confluent-kafka"), on_delivery=lambda e, _: failures.append(e))
            if producer.flush(LIMIT) or failures != [None]:
                sys.exit(f"{codec} was not acknowledged: {failures}")
            continue
        consumer = Consumer({
            "bootstrap.servers": brokers, "group.id": prefix, "enable.auto.commit": False,
        })
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        for _ in range(count):
            record = consumer.poll(LIMIT)
            if record is None or record.error():
                print(codec, record and record.error(), file=sys.stderr)
                break
            report(codec, record.value())
        consumer.close()


if __name__ == "__main__":
    client, brokers, action, prefix, wanted = sys.argv[1:]
    pairs = [(codec, int(count or 0)) for codec, _, count in (word.partition("=") for word in wanted.split(","))]
    {"kafka-python": kafka_python, "confluent-kafka": confluent}[client](brokers, action, prefix, pairs)
