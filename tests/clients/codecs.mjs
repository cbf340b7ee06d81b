// One record by kafkajs, for scripts/codecs.
//
// codecs.mjs BROKERS produce TOPIC CODEC   writes one record; kafkajs has the codecs `none` and `gzip`
// codecs.mjs BROKERS consume TOPIC COUNT   prints that many records, or fails within 20 s

import { createRequire } from "node:module";

const require = createRequire(`${process.env.CODECS_MODULES ?? process.cwd()}/`);
const { CompressionTypes, Kafka, logLevel } = require("kafkajs");

const LIMIT = 20_000;
const [brokers, action, topic, argument] = process.argv.slice(2);
const kafka = new Kafka({ clientId: "codecs", brokers: brokers.split(","), logLevel: logLevel.NOTHING, retry: { retries: 2 } });

async function produce() {
  const compression = { none: CompressionTypes.None, gzip: CompressionTypes.GZIP }[argument];
  if (compression === undefined) throw new Error(`kafkajs has no ${argument}`);
  const producer = kafka.producer();
  await producer.connect();
  const value = JSON.stringify({ jobID: `kafkajs-${argument}`, jobType: "tool-call", payload: { tool: "t" }, pad: "x".repeat(1000) });
  await producer.send({ topic, acks: -1, compression, messages: [{ value }] });
  await producer.disconnect();
}

async function consume() {
  const consumer = kafka.consumer({ groupId: `codecs-${process.pid}`, sessionTimeout: 6000 });
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  let left = Number(argument);
  await new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`${left} records are missing after ${LIMIT} ms`)), LIMIT);
    consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error));
    const eachMessage = async ({ message }) => {
      console.log(message.value.toString().slice(0, 120));
      left -= 1;
      if (left === 0) { clearTimeout(timer); resolve(); }
    };
    consumer.run({ eachMessage }).catch(reject);
  });
  await consumer.disconnect();
}

try {
  await (action === "produce" ? produce() : consume());
  process.exit(0);
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
