// Walks the console of a running fleet in Chromium: node walk.mjs NODE_MODULES CHROMIUM URL [SHOTS]
//
// The fleet is that of `mcp-fleet dev`, which hosts its directory as server `files`. The walk makes its own
// jobs by the console itself. It fails on any violation of the pages' policy, any finding of axe, any error of
// a script, and any page of 200 kB or more.
import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";

const [modules, chromiumName, base, shots] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const { chromium } = require("playwright-core");
const { AxeBuilder } = require("@axe-core/playwright");

const problems = [];
const executablePath = execFileSync("sh", ["-c", 'command -v "$1"', "sh", chromiumName], { encoding: "utf8" }).trim();
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });

function watch(page) {
  page.on("pageerror", (error) => problems.push(`${page.url()}: ${error}`));
  page.on("console", (message) => {
    // A refused form is a status, which the browser logs.
    if (message.type() === "error" && !/status of 4\d\d/.test(message.text())) {
      problems.push(`${page.url()}: ${message.text()}`);
    }
  });
  page.on("response", async (response) => {
    if (!(response.headers()["content-type"] ?? "").startsWith("text/html")) return;
    const size = Number(response.headers()["content-length"] ?? 0);
    if (size >= 200_000) problems.push(`${response.url()} has ${size} bytes`);
  });
}

async function look(page, name) {
  const { violations } = await new AxeBuilder({ page }).analyze();
  for (const { id, nodes } of violations) {
    problems.push(`${name}: ${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("; ").slice(0, 600)}`);
  }
  if (shots) await page.screenshot({ path: `${shots}/${name}.png`, fullPage: true });
}

async function expect(page, text, what) {
  await page.getByText(text).first().waitFor({ timeout: 20_000 }).catch(() => {
    throw new Error(`${what}: “${text}” is not on ${page.url()}`);
  });
}

async function runTool(page, name, fields, how) {
  await page.goto(`${base}/console/tools/${name}`);
  for (const [field, value] of Object.entries(fields)) await page.getByLabel(field).first().fill(value);
  await page.getByRole("button", { name: how }).click();
}

const context = await browser.newContext({ colorScheme: "light" });
const page = await context.newPage();
watch(page);

// A new fleet says what to do next.
await page.goto(`${base}/`);
await expect(page, "Nothing has run yet", "the overview of a new fleet");
await look(page, "empty");

// A tool is called now, by the form of its schema.
await runTool(page, "files__file_list", { path: "." }, "Call now");
await expect(page, "Result", "a call");
await look(page, "called");

// A job fails; its page says why; its arguments are corrected, and it runs.
await runTool(page, "files__file_digest", { path: "missing.txt" }, "Run as a job");
await expect(page, "Why it did not succeed", "a job that fails, followed live");
await look(page, "failed");
const failed = page.url().split("?")[0];
await page.goto(failed);
await page.getByRole("link", { name: "Edit and run" }).click();
await look(page, "edit");
await page.getByLabel("path").first().fill("hello.txt");
await page.getByRole("button", { name: "Run", exact: true }).click();
await page.locator(".string", { hasText: "2cf24dba" }).waitFor({ timeout: 20_000 });
await look(page, "succeeded");

// It is found by its filter, whose URL can be shared.
await page.goto(`${base}/console/jobs?state=failed`);
await page.getByLabel("Tool", { exact: true }).fill("files__file_digest");
await page.getByRole("button", { name: "Filter" }).click();
await page.waitForURL(/tool=files__file_digest/);
await expect(page, "FLEET-TOOL", "the failed job in the list");
await look(page, "jobs");

// All that match run again, after a preview.
await page.getByRole("link", { name: "Run all again…" }).click();
await expect(page, "jobs?", "the preview");
await look(page, "bulk");
await page.getByRole("button", { name: /^Run \d/ }).click();
await expect(page, "That is all", "the operation");

// Its letter says why it died, and is replayed after a preview.
await page.goto(`${base}/console/dead-letters`);
await expect(page, "Why jobs died", "the dead letters");
await look(page, "dead-letters");
await page.getByRole("link", { name: /^Replay letters of tool/ }).first().click();
await look(page, "replay");
await page.getByRole("button", { name: /^Replay \d/ }).click();
await expect(page, "records were replayed", "the replay");
await page.goto(`${base}/console/dead-letters`);
await page.getByRole("region", { name: "Newest letters" }).getByRole("link").first().click();
await look(page, "letter");

// Policy refuses a server, and says what would allow it.
await page.goto(`${base}/console/servers`);
await look(page, "servers");
await page.getByLabel("Configuration").fill('{"mcpServers": {"evil": {"command": "sh", "args": ["-c", "true"]}}}');
await page.getByRole("button", { name: "Show what would happen" }).click();
await expect(page, "policy refuses it", "the check");
await look(page, "check");
await page.goto(`${base}/console/servers/files`);
await look(page, "server");

for (const [name, path] of Object.entries({
  overview: "", approvals: "/approvals", tools: "/tools", tool: "/tools/files__file_read", code: "/codes/FLEET-TIMEOUT", missing: "/nothing",
})) {
  await page.goto(`${base}/console${path}`);
  await look(page, name);
}

// A list follows its jobs, and waits while somebody selects in it.
await page.goto(`${base}/console/jobs`);
await expect(page, "Updates are live", "the stream");
const submit = (id) => page.request.post(`${base}/jobs`, { data: { jobID: id, tool: "files__file_list", arguments: { path: "." } } });
await submit("live-1");
await expect(page, "live-1", "a job that was submitted meanwhile");
await page.evaluate(() => {
  document.getSelection().selectAllChildren(document.querySelector("#live-region td"));
});
await expect(page, "Updates wait while you select", "the pause");
await submit("live-2");
await page.waitForTimeout(3_000);
if (await page.getByText("live-2").count()) problems.push("a list changed under a selection");
await page.evaluate(() => document.getSelection().removeAllRanges());
await expect(page, "live-2", "the list after the selection");

// In the dark, on a phone, by the keyboard, and without scripts.
const dark = await browser.newContext({ colorScheme: "dark", viewport: { width: 390, height: 844 } });
const phone = await dark.newPage();
watch(phone);
for (const [name, path] of Object.entries({ "phone-overview": "", "phone-jobs": "/jobs", "phone-job": failed.slice(`${base}/console`.length) })) {
  await phone.goto(`${base}/console${path}`);
  await look(phone, name);
  const wide = await phone.evaluate(() => document.documentElement.scrollWidth > window.innerWidth);
  if (wide) problems.push(`${name} is wider than the phone`);
}
await page.goto(`${base}/console/jobs`);
await page.keyboard.press("Tab");
if ((await page.evaluate(() => document.activeElement.textContent)) !== "Skip to content") problems.push("the first stop is not the skip link");

const plain = await browser.newContext({ javaScriptEnabled: false });
const still = await plain.newPage();
await still.goto(failed);
await expect(still, "Why it did not succeed", "a job without scripts");
await still.getByRole("button", { name: "Run again" }).click();
await expect(still, "The job is on the queue", "a form without scripts");

await browser.close();
for (const problem of problems) console.error(problem);
if (problems.length) process.exit(1);
console.log("walked");
