// An explorer of the API, drawn from /openapi.json. No library, no other host.

const place = document.getElementById("operations");
const keyField = document.getElementById("key");

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

const resolve = (schema, spec) => {
  if (!schema) return {};
  if (schema.$ref) return resolve(spec.components.schemas[schema.$ref.split("/").pop()], spec);
  if (schema.anyOf) return resolve(schema.anyOf.find((each) => each.type !== "null") ?? {}, spec);
  return schema;
};

const sample = (schema, spec, depth = 0) => {
  const shape = resolve(schema, spec);
  if (shape.type === "object" && depth < 3) {
    const required = new Set(shape.required ?? []);
    const entries = Object.entries(shape.properties ?? {}).filter(([name]) => required.has(name));
    return Object.fromEntries(entries.map(([name, each]) => [name, sample(each, spec, depth + 1)]));
  }
  return { array: [], boolean: false, integer: 1, number: 1, object: {} }[shape.type] ?? "";
};

const token = async () => {
  const key = keyField.value.trim();
  if (!key) return null;
  const answer = await fetch("/api/v1/auth", { method: "POST", body: JSON.stringify({ apiKey: key }) });
  const envelope = await answer.json();
  if (!answer.ok) throw new Error(envelope.message);
  return envelope.data.token;
};

const show = async (response, output) => {
  output.textContent = `${response.status}\n`;
  const type = response.headers.get("content-type") ?? "";
  if (type.startsWith("text/event-stream")) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) output.append(part.value);
    return;
  }
  const text = await response.text();
  output.append(type.startsWith("application/json") ? JSON.stringify(JSON.parse(text), null, 2) : text);
};

const operation = (path, method, details, spec) => {
  const inputs = (details.parameters ?? []).map((each) => {
    const input = make("input", { name: each.name, size: 30, placeholder: each.description ?? "" });
    return make("label", {}, make("span", { textContent: each.name }), input);
  });
  const schema = details.requestBody?.content["application/json"].schema;
  const body = schema && make("textarea", {
    value: JSON.stringify(sample(schema, spec), null, 2),
    ariaLabel: "Request body",
  });
  const output = make("pre", { hidden: true, tabIndex: 0, ariaLabel: "Answer" });
  const form = make("form", {}, make("p", { textContent: details.description ?? "" }), ...inputs,
    ...(body ? [body] : []), make("button", { textContent: "Send" }), output);
  form.addEventListener("submit", async (submitted) => {
    submitted.preventDefault();
    output.hidden = false;
    output.textContent = "…";
    try {
      const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
      const headers = {};
      if (details.security) {
        const bearer = await token();
        if (bearer) headers.Authorization = `Bearer ${bearer}`;
      }
      const address = query.size ? `${path}?${query}` : path;
      await show(await fetch(address, { method, headers, body: body?.value }), output);
    } catch (problem) {
      output.textContent = String(problem.message ?? problem);
    }
  });
  return make("details", {}, make("summary", {}, make("span", { className: "method", textContent: method }),
    make("code", { textContent: path }), ` ${details.summary}`), form);
};

try {
  const spec = await (await fetch("/openapi.json")).json();
  const all = Object.entries(spec.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, details]) => operation(path, method.toUpperCase(), details, spec)));
  place.replaceChildren(...all);
} catch (problem) {
  place.textContent = `The description cannot be read: ${problem.message}`;
}
