// Records with every codec by kafkajs, for tests/tests/codecs.rs.
//
// codecs.mjs MODULES BROKERS produce PREFIX CODEC,…         writes a record with each codec to PREFIX-CODEC
// codecs.mjs MODULES BROKERS consume PREFIX CODEC=COUNT,…   prints `CODEC PRODUCER` for each record found there

import { createRequire } from "node:module";

const LIMIT = 20_000;
const [modules, brokers, action, prefix, wanted] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const { CompressionTypes, Kafka, logLevel } = require(`${modules}/kafkajs`);
const kafka = new Kafka({ clientId: "codecs", brokers: brokers.split(","), logLevel: logLevel.NOTHING, retry: { retries: 2 } });
const PAD = "x".repeat(100_000);

async function produce(codecs) {
  const producer = kafka.producer();
  await producer.connect();
  for (const [codec] of codecs) {
    const compression = { none: CompressionTypes.None, gzip: CompressionTypes.GZIP }[codec];
    if (compression === undefined) throw new Error(`kafkajs has no ${codec}`);
    await producer.send({ topic: `${prefix}-${codec}`, acks: -1, compression, messages: [{ value: `kafkajs ${PAD}` }] });
  }
  await producer.disconnect();
}

async function consume(codec, count) {
  const consumer = kafka.consumer({ groupId: `${prefix}-${codec}-${process.pid}`, sessionTimeout: 6000 });
  await consumer.connect();
  await consumer.subscribe({ topic: `${prefix}-${codec}`, fromBeginning: true });
  let left = count;
  await new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`${left} records are missing after ${LIMIT} ms`)), LIMIT);
    const end = (settle, value) => { clearTimeout(timer); settle(value); };
    consumer.on(consumer.events.CRASH, ({ payload }) => end(reject, payload.error));
    const eachMessage = async ({ message }) => {
      console.log(codec, message.value.toString().split(" ")[0]);
      left -= 1;
      if (left === 0) end(resolve);
    };
    consumer.run({ eachMessage }).catch((error) => end(reject, error));
  }).catch((error) => console.error(codec, error.message));
  await consumer.disconnect();
}

const pairs = wanted.split(",").map((word) => word.split("="));
try {
  if (action === "produce") await produce(pairs);
  else await Promise.all(pairs.map(([codec, count]) => consume(codec, Number(count))));
  process.exit(0);
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
