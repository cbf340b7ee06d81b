// What the console's pages do beyond links and forms: local times, trees of JSON, forms of schemas,
// copying, and pauses of live updates. Everything works without it for reading.
//
// Texts from outside are only ever set as text, never as HTML.

"use strict";

const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};

// Times are UTC in the page. The tooltip keeps that.

const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

function localizeTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const date = new Date(time.dateTime);
    if (!Number.isNaN(date.getTime())) time.textContent = moment.format(date);
  }
}

// Texts that can be copied.

function addCopyButtons(root) {
  for (const element of root.querySelectorAll("[data-copy]")) {
    if (element.parentElement.classList.contains("copyable")) continue;
    const button = make("button", { type: "button", className: "copy", textContent: "Copy" });
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(element.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    const frame = make("span", { className: "copyable" });
    element.replaceWith(frame);
    frame.append(element, button);
  }
}

// JSON as a tree that folds.

const MAX_NODES = 4000;

class JsonTree extends HTMLElement {
  connectedCallback() {
    const source = this.querySelector("pre");
    if (!source || this.querySelector(".tree")) return;
    let value;
    try {
      value = JSON.parse(source.textContent);
    } catch {
      return; // It was cut, or has numbers that only text can show.
    }
    if (value === null || typeof value !== "object") return;
    this.nodes = 0;
    const tree = make("div", { className: "tree", tabIndex: 0 });
    tree.setAttribute("role", "group");
    tree.setAttribute("aria-label", source.getAttribute("aria-label") ?? "JSON");
    tree.append(this.branch(null, value, 0));
    if (this.nodes < MAX_NODES) source.replaceWith(tree);
  }

  branch(key, value, depth) {
    this.nodes += 1;
    if (this.nodes >= MAX_NODES) return make("div");
    const name = key === null ? [] : [make("span", { className: "key", textContent: key }), ": "];
    if (value === null || typeof value !== "object") {
      const kind = typeof value === "string" ? "string" : typeof value === "number" ? "number" : "literal";
      const text = kind === "string" ? value : JSON.stringify(value);
      return make("div", { className: "leaf" }, ...name, make("span", { className: kind, textContent: text }));
    }
    const entries = Object.entries(value);
    const size = Array.isArray(value) ? `[${entries.length}]` : `{${entries.length}}`;
    const summary = make("summary", {}, ...name, make("span", { className: "size", textContent: size }));
    const preview = JSON.stringify(value).slice(0, 100);
    summary.append(" ", make("span", { className: "preview", textContent: preview }));
    const open = depth < 2 && entries.length <= 40;
    return make("details", { open }, summary, ...entries.map(([k, v]) => this.branch(k, v, depth + 1)));
  }
}

// A form of a tool's schema beside the JSON, which stays what is sent.

class SchemaForm extends HTMLElement {
  connectedCallback() {
    this.area = this.querySelector("textarea");
    if (!this.area || this.fields) return;
    let schema;
    try {
      schema = JSON.parse(this.dataset.schema || "null");
    } catch {
      return;
    }
    const properties = schema && schema.properties;
    if (!properties || Object.keys(properties).length === 0) return;

    this.required = new Set(Array.isArray(schema.required) ? schema.required : []);
    this.fields = make("div", { className: "fields" });
    this.inputs = new Map();
    for (const [name, property] of Object.entries(properties)) this.addField(name, property ?? {});

    const label = this.area.closest("label");
    const toggle = make("button", { type: "button", className: "switch", textContent: "Edit as JSON" });
    toggle.addEventListener("click", () => {
      const showsFields = !this.fields.hidden;
      this.fields.hidden = showsFields;
      label.hidden = !showsFields;
      toggle.textContent = showsFields ? "Edit as a form" : "Edit as JSON";
      if (!showsFields) this.readJson();
    });
    this.prepend(this.fields, toggle);
    label.hidden = true;
    this.readJson();
    this.fields.addEventListener("input", () => this.writeJson());
  }

  addField(name, property) {
    const id = `field-${name}`;
    const kind = Array.isArray(property.type) ? property.type.find((one) => one !== "null") : property.type;
    let input;
    if (Array.isArray(property.enum)) {
      const options = property.enum.map((one) => make("option", { value: JSON.stringify(one), textContent: String(one) }));
      input = make("select", {}, make("option", { value: "", textContent: "" }), ...options);
    } else if (kind === "boolean") {
      const options = ["true", "false"].map((one) => make("option", { value: one, textContent: one }));
      input = make("select", {}, make("option", { value: "", textContent: "" }), ...options);
    } else if (kind === "integer" || kind === "number") {
      input = make("input", { type: "number", step: kind === "integer" ? "1" : "any" });
      if (typeof property.minimum === "number") input.min = property.minimum;
      if (typeof property.maximum === "number") input.max = property.maximum;
    } else if (kind === "string") {
      input = make("input", { type: "text", autocomplete: "off", spellcheck: false });
    } else {
      input = make("textarea", { rows: 3, spellcheck: false, placeholder: "JSON" });
    }
    input.id = id;
    if (property.default !== undefined && property.default !== null) input.placeholder = String(JSON.stringify(property.default));
    const title = make("span", { textContent: property.title || name });
    if (this.required.has(name)) title.className = "required";
    this.fields.append(make("label", {}, title, input));
    if (property.description) {
      this.fields.append(make("p", { className: "hint", id: `${id}-hint`, textContent: property.description }));
      input.setAttribute("aria-describedby", `${id}-hint`);
    }
    this.inputs.set(name, { input, kind, isEnum: Array.isArray(property.enum) });
  }

  readJson() {
    let value;
    try {
      value = JSON.parse(this.area.value || "{}");
    } catch {
      return;
    }
    this.others = Object.fromEntries(Object.entries(value).filter(([name]) => !this.inputs.has(name)));
    for (const [name, { input, kind, isEnum }] of this.inputs) {
      const found = value[name];
      if (found === undefined) input.value = "";
      else if (kind === "string" && !isEnum) input.value = String(found);
      else input.value = JSON.stringify(found);
    }
  }

  writeJson() {
    const value = { ...this.others };
    for (const [name, { input, kind, isEnum }] of this.inputs) {
      input.setCustomValidity("");
      const isMissing = input.value === "";
      if (isMissing && !(kind === "string" && !isEnum && this.required.has(name))) continue;
      if (kind === "string" && !isEnum) {
        value[name] = input.value;
        continue;
      }
      try {
        value[name] = JSON.parse(input.value);
      } catch {
        input.setCustomValidity("This is not JSON.");
      }
    }
    this.area.value = JSON.stringify(value, null, 2);
  }
}

// Updates: they wait while somebody selects or types in what would change.

const region = () => document.getElementById("live-region");

function isInUse() {
  const area = region();
  if (!area) return false;
  const selection = document.getSelection();
  const selects = selection && !selection.isCollapsed && area.contains(selection.anchorNode);
  const types = area.contains(document.activeElement) && document.activeElement.matches("input, select, textarea");
  return Boolean(selects || types);
}

let isOn = false;
let hasEnded = false;
let missed = false;

function showLive() {
  const live = document.getElementById("live");
  if (!live) return;
  const paused = isOn && isInUse();
  live.dataset.live = hasEnded ? "ended" : !isOn ? "off" : paused ? "paused" : "on";
  const texts = {
    on: "Updates are live",
    off: "Connecting for live updates",
    paused: "Updates wait while you select",
    ended: "This job has ended",
  };
  live.querySelector("[data-live-text]").textContent = texts[live.dataset.live];
}

document.addEventListener("htmx:before:request", (event) => {
  const source = event.detail?.ctx?.sourceElement;
  if (source && source.id !== "live" && isInUse()) {
    missed = true;
    event.preventDefault();
  }
});
document.addEventListener("htmx:sse:after:connection", () => { isOn = true; showLive(); });
document.addEventListener("htmx:sse:error", () => { isOn = false; showLive(); });
document.addEventListener("htmx:sse:close", () => { isOn = false; showLive(); });
document.addEventListener("end", () => { hasEnded = true; showLive(); }, true);
document.addEventListener("htmx:after:swap", () => enhance(document));
document.addEventListener("selectionchange", () => {
  showLive();
  if (missed && !isInUse()) {
    missed = false;
    document.getElementById("live")?.dispatchEvent(new Event("fleet", { bubbles: true }));
  }
});

function enhance(root) {
  localizeTimes(root);
  addCopyButtons(root);
}

customElements.define("json-tree", JsonTree);
customElements.define("schema-form", SchemaForm);
enhance(document);
// An operation in steps goes on by itself, unless one stops it meanwhile.
setTimeout(() => document.querySelector("form[data-continue]")?.submit(), 1000);
