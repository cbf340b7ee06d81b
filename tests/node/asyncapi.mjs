// Checks an AsyncAPI document with the official parser: node asyncapi.mjs NODE_MODULES FILE
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [modules, file] = process.argv.slice(2);
const { Parser, DiagnosticSeverity } = createRequire(`${modules}/`)("@asyncapi/parser");
const { document, diagnostics } = await new Parser().parse(readFileSync(file, "utf8"));
// Hints, such as that there is a newer version of AsyncAPI, are no faults.
const faults = diagnostics.filter(({ severity }) => severity <= (DiagnosticSeverity?.Warning ?? 1));
for (const { path, message } of faults) console.error(`${path.join(".")}: ${message}`);
if (!document || faults.length > 0) process.exit(1);
const operations = document.operations().all().length;
console.log(`${document.channels().all().length} channels, ${operations} operations`);
