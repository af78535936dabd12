"use strict";
// Renders openapi.json. Text goes into the page as text, never as HTML, whatever the document holds.

const find = (selector, within = document) => within.querySelector(selector);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Text with `code` in it, as nodes. */
function prose(text) {
  return (text ?? "").split(/`+([^`]+)`+/).map((part, index) => (index % 2 ? make("code", {}, part) : part));
}

function table(headings, rows) {
  const head = make("tr", {}, ...headings.map((heading) => make("th", { scope: "col" }, heading)));
  const body = rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, ...[cell].flat()))));
  return make("div", { class: "table" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

/** What a schema allows, as nodes; models as links. */
function kind(schema) {
  if (schema === undefined || schema === true) return ["anything"];
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return [make("a", { href: `#model-${name}` }, name)];
  }
  const carried = schema.properties?.data?.contentSchema;
  if (carried) return ["events of ", ...kind(carried)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" | ")];
  if ("const" in schema) return [JSON.stringify(schema.const)];
  const options = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (options) return options.flatMap((option, index) => (index ? [" | ", ...kind(option)] : kind(option)));
  if (schema.type === "array") return ["list of ", ...kind(schema.items)];
  if (schema.type === "object" && schema.additionalProperties) return ["object of ", ...kind(schema.additionalProperties)];
  return [[schema.type ?? "anything", schema.format].filter(Boolean).join(", ")];
}

/** The bounds and the default of a value. */
function bounds(schema) {
  const all = [schema, ...(schema.anyOf ?? [])];
  const words = {
    minimum: "from", exclusiveMinimum: "above", maximum: "to", exclusiveMaximum: "below",
    minLength: "at least, in characters:", maxLength: "at most, in characters:", minItems: "at least, in items:", pattern: "matches",
  };
  const said = Object.entries(words).flatMap(([name, word]) => {
    const owner = all.find((one) => name in one);
    return owner ? [`${word} ${owner[name]}`] : [];
  });
  if (schema.default !== undefined && schema.default !== null) said.push(`default ${JSON.stringify(schema.default)}`);
  return said.join(", ");
}

function about(schema, description) {
  const limits = bounds(schema);
  return [make("p", {}, ...prose(description)), ...(limits ? [make("p", { class: "soft" }, limits)] : [])];
}

function fields(schema) {
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => [
    [make("code", {}, name), required.has(name) ? "" : make("span", { class: "soft" }, " optional")],
    kind(field),
    about(field, field.description),
  ]);
  return rows.length ? [table(["Field", "Type", ""], rows)] : [];
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** One endpoint: what it takes, a curl line that follows what is filled in, and a button that sends it. */
class Operation {
  constructor(method, path, spec) {
    this.method = method.toUpperCase();
    this.path = path;
    this.spec = spec;
    this.element = find("#operation").content.firstElementChild.cloneNode(true);
    this.inputs = new Map();
    this.element.id = spec.operationId;
    const badge = find(".method", this.element);
    badge.textContent = this.method;
    badge.classList.add(method);
    find(".path", this.element).textContent = path;
    find(".about", this.element).append(...prose(spec.summary));
    const scope = spec.security?.flatMap((one) => one.token ?? [])[0];
    const more = find(".more", this.element);
    more.append(...prose(spec.description), spec.description ? " " : "");
    more.append(make("span", { class: "soft" }, scope ? `Scope of the token: ${scope}.` : "Needs no token."));
    this.addParameters();
    this.addBody();
    this.addAnswers();
    this.form = find("form", this.element);
    this.form.addEventListener("input", () => this.showCurl());
    this.form.addEventListener("submit", (event) => this.send(event));
    find(".copy", this.element).addEventListener("click", (event) => this.copy(event.target));
    this.element.addEventListener("toggle", () => this.showCurl());
    this.showCurl();
  }

  addParameters() {
    const rows = (this.spec.parameters ?? []).map((parameter) => {
      const input = make("input", { "aria-label": parameter.name, spellcheck: "false" });
      if (parameter.in === "path") input.value = "1";
      input.placeholder = String(parameter.schema.default ?? "");
      this.inputs.set(parameter, input);
      const where = make("span", { class: "soft" }, parameter.required ? ` ${parameter.in}` : ` ${parameter.in}, optional`);
      return [[make("code", {}, parameter.name), where], kind(parameter.schema), about(parameter.schema, parameter.description), input];
    });
    if (rows.length) find(".parameters", this.element).append(make("h4", {}, "Parameters"), table(["Name", "Type", "", "Value"], rows));
  }

  addBody() {
    const content = this.spec.requestBody?.content?.["application/json"];
    if (!content) return;
    this.body = make("textarea", { "aria-label": "Body", spellcheck: "false" });
    this.body.value = JSON.stringify(content.example ?? {}, null, 2);
    const title = make("h4", {}, "Body ", make("small", {}, ...kind(content.schema), this.spec.requestBody.required ? "" : ", optional"));
    find(".sent", this.element).append(title, this.body);
  }

  addAnswers() {
    const rows = Object.entries(this.spec.responses).map(([status, answer]) => {
      const kinds = Object.entries(answer.content ?? {}).flatMap(([type, content], index) => [
        ...(index ? [make("br")] : []), ...kind(content.schema), make("span", { class: "soft" }, ` ${type}`),
      ]);
      const headers = Object.entries(answer.headers ?? {}).map(([name, header]) => make("p", { class: "soft" }, `${name}: `, ...prose(header.description)));
      return [make("code", {}, status), kinds, [make("p", {}, ...prose(answer.description)), ...headers]];
    });
    find(".answers", this.element).append(table(["Status", "Body", ""], rows));
  }

  request() {
    const query = new URLSearchParams();
    const headers = {};
    let path = this.path;
    for (const [parameter, input] of this.inputs) {
      if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
      else if (input.value === "") continue;
      else if (parameter.in === "query") query.append(parameter.name, input.value);
      else headers[parameter.name] = input.value;
    }
    if (this.body) headers["Content-Type"] = "application/json";
    const url = new URL(path, location.origin);
    url.search = query.toString();
    return { url, headers, body: this.body?.value };
  }

  curl() {
    const { url, headers, body } = this.request();
    const parts = ["curl", ...(this.method === "GET" ? [] : ["-X", this.method]), quote(url.href)];
    if (find("#token").value) parts.push('-H "Authorization: Bearer $HARNESS_TOKEN"');
    for (const [name, value] of Object.entries(headers)) parts.push("-H", quote(`${name}: ${value}`));
    if (body !== undefined) parts.push("-d", quote(compact(body)));
    return parts.join(" ");
  }

  showCurl() {
    find(".curl", this.element).textContent = this.curl();
  }

  async copy(button) {
    // Browsers give the clipboard to secure origins only; loopback is one.
    try {
      await navigator.clipboard.writeText(this.curl());
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(find(".curl", this.element));
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  async send(event) {
    event.preventDefault();
    const status = find("output", this.element);
    const answer = find(".answer", this.element);
    const { url, headers, body } = this.request();
    const token = find("#token").value;
    if (token) headers.Authorization = `Bearer ${token}`;
    status.textContent = "…";
    const began = performance.now();
    try {
      const response = await fetch(url, { method: this.method, headers, body });
      status.textContent = `${response.status} ${response.statusText}, ${Math.round(performance.now() - began)} ms`;
      answer.textContent = "";
      answer.hidden = false;
      // As it comes: a stream of events has no end for a while.
      for (const reader = response.body.pipeThrough(new TextDecoderStream()).getReader(); ;) {
        const { value, done } = await reader.read();
        if (done) break;
        answer.append(value);
      }
      answer.textContent = pretty(answer.textContent);
    } catch (error) {
      status.textContent = "no answer";
      answer.textContent = String(error);
    }
    answer.hidden = answer.textContent === "";
  }
}

// Numbers stay as they are written: JSON.parse would round the large ones.
const compact = (text) => text.replace(/("(?:[^"\\]|\\.)*")|\s+/g, (_, string) => string ?? "");

function pretty(text) {
  try {
    const value = JSON.parse(text);
    return /\d{16}/.test(text) ? text : JSON.stringify(value, null, 2);
  } catch {
    return text;
  }
}

function showContents(groups) {
  const contents = find("#contents");
  for (const [tag, operations] of groups) {
    const links = operations.map((one) =>
      make("li", {}, make("a", { href: `#${one.spec.operationId}` }, make("span", { class: `method ${one.method.toLowerCase()}` }, one.method), one.spec.operationId.replaceAll("_", " "))));
    contents.append(make("strong", {}, tag), make("ul", {}, ...links));
  }
  contents.append(make("a", { href: "#models" }, "Models"));
  contents.open = matchMedia("(min-width: 64rem)").matches;
}

/** Open what the address points at. */
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
  target?.scrollIntoView();
}

async function show() {
  const main = find("main");
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`openapi.json: ${answer.status} ${answer.statusText}`);
  const document_ = await answer.json();
  find("#version").textContent = document_.info.version;
  find("#about").append(...document_.info.description.split("\n\n").map((text) => make("p", {}, ...prose(text))));
  const groups = new Map(document_.tags.map((tag) => [tag.name, []]));
  for (const [path, methods] of Object.entries(document_.paths)) {
    for (const [method, spec] of Object.entries(methods)) groups.get(spec.tags[0]).push(new Operation(method, path, spec));
  }
  for (const tag of document_.tags) {
    main.append(make("h2", {}, tag.name), make("p", {}, ...prose(tag.description)), ...groups.get(tag.name).map((one) => one.element));
  }
  main.append(make("h2", { id: "models" }, "Models"));
  for (const [name, schema] of Object.entries(document_.components.schemas).sort(([a], [b]) => a.localeCompare(b))) {
    const summary = make("summary", {}, make("code", { class: "path" }, name), " ", make("span", { class: "about" }, ...prose(schema.description)));
    const inner = schema.properties ? fields(schema) : [make("p", {}, ...kind(schema))];
    main.append(make("details", { class: "model", id: `model-${name}` }, summary, make("div", { class: "body" }, ...inner)));
  }
  showContents(groups);
  find("#token").addEventListener("input", () => [...groups.values()].flat().forEach((one) => one.showCurl()));
  addEventListener("hashchange", openTarget);
  openTarget();
}

show().catch((error) => find("main").append(make("p", { role: "alert" }, `The page can't be shown: ${error.message}`)));
