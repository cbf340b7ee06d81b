"""One record by kafka-python or confluent-kafka, for scripts/codecs.

codecs.py CLIENT BROKERS produce TOPIC CODEC   writes one record, uncompressed if CODEC is `none`
codecs.py CLIENT BROKERS consume TOPIC COUNT   prints that many records, or fails within 20 s
"""

import sys

VALUE = b'{"jobID":"%s","jobType":"tool-call","payload":{"tool":"t"},"pad":"' + b"x" * 1000 + b'"}'
LIMIT = 20


def value(client, codec):
    return VALUE.replace(b"%s", f"{client}-{codec}".encode())


def kafka_python(brokers, action, topic, argument):
    from kafka import KafkaConsumer, KafkaProducer

    if action == "produce":
        codec = None if argument == "none" else argument
        producer = KafkaProducer(bootstrap_servers=brokers, compression_type=codec, acks="all")
        producer.send(topic, value("kafka-python", argument)).get(timeout=LIMIT)
        return
    consumer = KafkaConsumer(
        topic, bootstrap_servers=brokers, auto_offset_reset="earliest", group_id=None,
        consumer_timeout_ms=LIMIT * 1000,
    )
    for count, record in enumerate(consumer, 1):
        print(record.value.decode()[:120])
        if count == int(argument):
            return
    sys.exit(f"fewer than {argument} records within {LIMIT} s")


def confluent(brokers, action, topic, argument):
    from confluent_kafka import Consumer, Producer

    if action == "produce":
        producer = Producer({"bootstrap.servers": brokers, "compression.type": argument, "acks": "all"})
        failures = []
        producer.produce(topic, value("confluent-kafka", argument), on_delivery=lambda e, _: failures.append(e))
        if producer.flush(LIMIT) or failures != [None]:
            sys.exit(f"not acknowledged: {failures}")
        return
    consumer = Consumer({
        "bootstrap.servers": brokers, "group.id": "codecs", "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
    })
    consumer.subscribe([topic])
    for _ in range(int(argument)):
        record = consumer.poll(LIMIT)
        if record is None or record.error():
            sys.exit(f"no record: {record and record.error()}")
        print(record.value().decode()[:120])
    consumer.close()


if __name__ == "__main__":
    clients = {"kafka-python": kafka_python, "confluent-kafka": confluent}
    clients[sys.argv[1]](*sys.argv[2:])
