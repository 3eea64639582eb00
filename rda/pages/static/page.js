// The status page: draws the documents that /_rda/events sends (docs/status-schema.rst). No library, no build step.
// Whatever comes from containers and files gets into the page as text only, never as markup.
"use strict";

// ------------------------------------------------------------------------------------------------ elements

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes, ...children) {
  const svg = ["svg", "path", "line"].includes(name);
  const made = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== ""));
  return made;
}

// Make `old` look like `made` with the fewest changes, so that focus, selection and a screen reader's place stay.
function morph(old, made) {
  if (old.nodeType !== made.nodeType || old.nodeName !== made.nodeName) {
    old.replaceWith(made);
    return;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== made.data) old.data = made.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!made.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of made.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const before = [...old.childNodes];
  const after = [...made.childNodes];
  after.forEach((child, n) => (n < before.length ? morph(before[n], child) : old.append(child)));
  before.slice(after.length).forEach((child) => child.remove());
}

// ------------------------------------------------------------------------------------------------- numbers

function bytes(count) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 999.5) return `${unit === "B" || count >= 99.95 ? count.toFixed(0) : count.toFixed(1)} ${unit}`;
    count /= 1000;
  }
  return `${count.toFixed(1)} TB`;
}

function span(seconds) {
  if (seconds < 0.0995) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(0)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.floor(seconds);
  for (const [unit, length, smaller, part] of [["d", 86400, "h", 3600], ["h", 3600, "min", 60], ["min", 60, "s", 1]]) {
    if (whole >= length) {
      const rest = Math.floor((whole % length) / part);
      return `${Math.floor(whole / length)} ${unit}${rest ? ` ${rest} ${smaller}` : ""}`;
    }
  }
  return `${whole} s`;
}

const number = (value) => value.toLocaleString("en");
const plural = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;
const ago = (time, now) => (now - time < 1.5 ? "just now" : `${span(Math.max(1, Math.round(now - time)))} ago`);
const clock = (time) => new Date(time * 1000).toLocaleTimeString([], { hour12: false });

// --------------------------------------------------------------------------------------------------- parts

const LINK_LOOKS = { connected: "good", connecting: "wait", waiting: "wait", failed: "bad" };
const MIRROR_LOOKS = { idle: "good", scanning: "wait", applying: "wait", waiting: "wait", paused: "wait", halted: "bad" };
const MIRROR_WORDS = { idle: "in sync", scanning: "looking", applying: "transferring" };
const FORWARD_LOOKS = { open: "good", reserved: "wait", "not forwarded": "bad" };

const badge = (text, look) => element("span", { class: `badge ${look || ""}` }, text);
// No landmarks, which would have the same names in each context: the headings lead to them.
const card = (kind, title, ...content) => element("div", { class: `card ${kind}` }, element("h3", {}, title), ...content);
const capital = (word) => word.charAt(0).toUpperCase() + word.slice(1);
// A path may be broken after a slash.
const path = (text) => text.split(/(?<=\/)(?=.)/).flatMap((part, n) => (n ? [element("wbr"), part] : [part]));
const empty = (...words) => element("p", { class: "empty" }, ...words);
const code = (text) => element("code", {}, text);
const facts = (pairs) =>
  element("dl", { class: "facts" }, pairs.filter(([, value]) => value !== "").map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));

function problemsOf(context) {
  const found = context.problems.map((problem) => ({ ...problem }));
  if (context.link.reason) found.unshift({ subject: context.link.remote, message: context.link.reason, since: context.link.since });
  for (const forward of context.forwards) {
    if (forward.reason) found.push({ subject: `${forward.local} → ${forward.name} ${forward.port}`, message: forward.reason, since: 0 });
  }
  return found;
}

function problem(one, now, kind) {
  return element("div", { class: `problem ${kind || ""}` },
    one.message.startsWith(one.subject) ? null : element("strong", {}, path(one.subject)),
    element("p", {}, one.message),
    one.since ? element("p", { class: "at" }, `since ${ago(one.since, now)}`) : null);
}

function niceTop(milliseconds) {
  const power = 10 ** Math.floor(Math.log10(milliseconds));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= milliseconds);
}

// The chart of round trips: time from left to right, from zero upwards; broken where the link was.
function chart(samples, measured, now) {
  if (samples.length < 2) {
    const words = measured ? "a chart comes with the next measurements" : "no measurements yet";
    return [element("div", { class: "chart blank" }, element("p", { class: "none" }, words))];
  }
  const [width, height] = [600, 100];
  const times = samples.map(([time]) => time);
  const values = samples.map(([, seconds]) => seconds * 1000);
  const from = times[0];
  const length = Math.max(now - from, 1);
  const top = niceTop(Math.max(...values, 0.1) * 1.1);
  const gaps = times.slice(1).map((time, n) => time - times[n]).sort((a, b) => a - b);
  const gap = Math.max(gaps[Math.floor(gaps.length / 2)] * 4, 30);
  const at = (n) => `${(((times[n] - from) / length) * width).toFixed(1)},${(height - (values[n] / top) * height).toFixed(1)}`;
  let line = "";
  let area = "";
  let first = 0;
  for (let n = 1; n <= times.length; n += 1) {
    if (n < times.length && times[n] - times[n - 1] <= gap) continue;
    const points = Array.from({ length: n - first }, (_, k) => at(first + k));
    line += `M${points.join("L")}`;
    area += `M${points[0].split(",")[0]},${height}L${points.join("L")}L${points[points.length - 1].split(",")[0]},${height}Z`;
    first = n;
  }
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const words = `Round trip over the last ${span(length)}: from ${span(low / 1000)} to ${span(high / 1000)}.`;
  return [
    element("div", { class: "chart", role: "img", "aria-label": words },
      element("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
        [0, 0.5, 1].map((part) =>
          element("line", { class: "rule", x1: 0, x2: width, y1: part * height, y2: part * height })),
        element("path", { class: "area", d: area }),
        element("path", { class: "line", d: line })),
      element("span", { class: "top", "aria-hidden": "true" }, span(top / 1000).replace(".0 ", " ")),
      element("span", { class: "zero", "aria-hidden": "true" }, "0")),
    element("p", { class: "axis", "aria-hidden": "true" }, element("span", {}, `${span(length)} ago`), element("span", {}, "now")),
  ];
}

function linkCard(link, now) {
  const trips = link.round_trips;
  const values = trips.map(([, seconds]) => seconds);
  const range = values.length > 1 ? `between ${span(Math.min(...values))} and ${span(Math.max(...values))}` : "";
  const next = link.next_try && link.next_try > now ? `in ${span(link.next_try - now)}` : "";
  return card("link", "Round trip",
    element("p", { class: "latency" },
      element("strong", {}, link.round_trip === null ? "–" : span(link.round_trip)), element("span", {}, range)),
    chart(trips, link.round_trip !== null, now),
    facts([
      [`${capital(link.state)} for`, link.since ? span(Math.max(0, now - link.since)) : ""],
      ["Next attempt", next],
      ["Docker socket via", link.socket_via],
      ["Connections so far", number(link.connects)],
      ["Server", link.server.replace(/^SSH-2\.0-/, "")],
      ["Cipher", link.cipher.replace(/@.*/, "")],
    ]));
}

function totalsCard(context) {
  const { relay, forwards, mirrors } = context;
  const sum = (rows, key) => rows.reduce((total, row) => total + row[key], 0);
  return card("totals", "So far",
    facts([
      ["API calls", number(relay.requests)],
      ["Under way", number(relay.active)],
      ["To the daemon", bytes(relay.to_daemon)],
      ["From the daemon", bytes(relay.to_client)],
      ["Published ports", number(forwards.length)],
      ["Through them", bytes(sum(forwards, "bytes_in") + sum(forwards, "bytes_out"))],
      ["Mirrored files", number(sum(mirrors, "files"))],
      ["Mirrored", bytes(sum(mirrors, "bytes"))],
    ]));
}

function mirrorFacts(mirror, now) {
  const words = [plural(mirror.files, "file", "files"), bytes(mirror.bytes)];
  if (mirror.mode !== "one-way") words.unshift(mirror.mode);
  if (mirror.last_change !== null) {
    words.push(`last change ${ago(mirror.last_change, now)}${mirror.latency === null ? "" : `, there after ${span(mirror.latency)}`}`);
  }
  return words.join(" · ");
}

function progress(mirror) {
  if (mirror.state !== "applying" || !mirror.files_total) return null;
  const [done, total] = mirror.bytes_total ? [mirror.bytes_done, mirror.bytes_total] : [mirror.files_done, mirror.files_total];
  const words = [
    `${number(mirror.files_done)} of ${plural(mirror.files_total, "file", "files")}`,
    `${bytes(mirror.bytes_done)} of ${bytes(mirror.bytes_total)}`,
    mirror.rate ? `${bytes(mirror.rate)}/s` : "",
    mirror.time_left !== null ? `about ${span(Math.max(1, mirror.time_left))} left` : "",
  ];
  return [
    element("progress", { value: done, max: total, "aria-label": `Transfer of ${mirror.source}` }),
    element("p", { class: "facts-line" }, words.filter(Boolean).join(" · ")),
  ];
}

function waits(waiting, mirror, now) {
  return waiting.filter((one) => one.source === mirror.source).map((one) =>
    element("p", { class: "facts-line waits" }, `${one.call} has been waiting for it for ${span(Math.max(1, Math.round(now - one.since)))}`));
}

function mirrorRow(mirror, waiting, now) {
  const hidden = mirror.problems_total - mirror.problems.length;
  return element("li", { class: "mirror" },
    element("div", { class: "line1" },
      element("span", { class: "path" }, path(mirror.source)),
      badge(MIRROR_WORDS[mirror.state] || mirror.state, MIRROR_LOOKS[mirror.state])),
    progress(mirror) || element("p", { class: "facts-line" }, mirrorFacts(mirror, now)),
    waits(waiting, mirror, now),
    mirror.problems.slice(0, 10).map((one) => problem(one, now)),
    mirror.conflicts.slice(0, 10).map((one) => problem(one, now, "conflict")),
    hidden > 0 ? element("p", { class: "facts-line" }, `and ${plural(hidden, "problem", "problems")} more`) : null);
}

function table(name, heads, rows) {
  // The roles are those of the elements, which browsers forget where the style makes a list of the table.
  const cell = ([text, kind], n) =>
    element("td", { role: "cell", class: kind || null, "data-label": heads[n][2] ? heads[n][0] : null }, text);
  const head = ([text, kind]) => element("th", { role: "columnheader", scope: "col", class: kind || null }, text);
  return element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": name },
    element("table", { role: "table" },
      element("caption", { class: "unseen" }, name),
      element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, heads.map(head))),
      element("tbody", { role: "rowgroup" }, rows.map((row) => element("tr", { role: "row" }, row.map(cell))))));
}

function localPort(forward) {
  const port = /:(\d+)$/.exec(forward.local);
  if (!port || forward.state !== "open" || !forward.port.endsWith("/tcp")) return element("span", { class: "mono" }, forward.local);
  return element("a", { class: "mono", href: `http://localhost:${port[1]}/`, rel: "noreferrer noopener", target: "_blank" }, forward.local);
}

function forwardsTable(forwards) {
  const heads = [["Here"], ["Container"], ["State"], ["Connections", "number", true], ["In", "number", true], ["Out", "number", true]];
  return table("Published ports", heads, forwards.map((forward) => [
    [localPort(forward)],
    [[element("span", {}, `${forward.name} ${forward.port}`)], "wide"],
    [badge(forward.state, FORWARD_LOOKS[forward.state])],
    [number(forward.connections), "number"],
    [bytes(forward.bytes_in), "number"],
    [bytes(forward.bytes_out), "number"],
  ]));
}

function callsTable(calls, now) {
  const who = calls.some((call) => call.caller);
  const heads = [["Time"], ["Call"], ["Status"], ["Took", "number"], ...(who ? [["Caller"]] : [])];
  return table("Recent calls", heads, calls.map((call) => {
    const look = call.code === null ? "" : call.code < 400 ? "code-good" : "code-bad";
    return [
      [clock(call.began)],
      [element("span", { class: "mono" }, `${call.method} ${call.path.replace(/[0-9a-f]{64}/g, (id) => id.slice(0, 12))}`), "wide"],
      [call.code === null ? "–" : element("span", { class: look }, String(call.code))],
      [call.seconds === null
        ? element("span", { class: "running" }, `${span(Math.max(0, Math.round(now - call.began)))} so far`)
        : span(call.seconds), "number"],
      ...(who ? [[call.caller]] : []),
    ];
  }));
}

function contextSection(context, now) {
  const problems = problemsOf(context);
  const { link } = context;
  return element("section", { class: "context", "aria-label": `Context ${context.name}` },
    element("div", { class: "title" },
      element("h2", {}, context.name),
      badge(link.state, LINK_LOOKS[link.state]),
      element("span", { class: "where" }, link.remote),
      element("span", { class: "listeners" }, context.listeners.map((one) => code(`DOCKER_HOST=${one}`)))),
    element("div", { class: "grid" },
      problems.length === 0 ? null : card("problems", "Needs attention",
        element("ul", { class: "rows" }, problems.map((one) => element("li", {}, problem(one, now))))),
      linkCard(link, now),
      totalsCard(context),
      card("mirrors", "Bind mounts", context.mirrors.length
        ? element("ul", { class: "rows" }, context.mirrors.map((mirror) => mirrorRow(mirror, context.waiting, now)))
        : empty("Nothing is mirrored. ", code("docker run -v ./site:/www …"), " brings a directory of this machine into a container.")),
      card("forwards", "Published ports", context.forwards.length
        ? forwardsTable(context.forwards)
        : empty("No port is published. ", code("docker run -p 8080:80 …"), " opens one on this machine.")),
      card("calls", "Recent calls", context.calls.length ? callsTable(context.calls, now) : empty("None yet."))));
}

// ---------------------------------------------------------------------------------------------------- page

const page = { status: null, offset: 0, told: "", live: "connecting" };

const find = (id) => document.getElementById(id);

function count(context) {
  const ofMirrors = context.mirrors.reduce((total, mirror) => total + Math.max(mirror.problems.length, mirror.problems_total), 0);
  return problemsOf(context).length + ofMirrors;
}

// What a screen reader says when it changes: states and problems, no numbers that change all the time.
function announce(status) {
  const words = status.contexts.map((context) => {
    const problems = count(context);
    return `${context.name}: ${context.link.state}${problems ? `, ${plural(problems, "problem", "problems")}` : ""}`;
  }).join(". ");
  if (words !== page.told) find("announcements").textContent = page.told = words;
}

function draw() {
  const { status } = page;
  if (status === null) return;
  const now = Date.now() / 1000 + page.offset;
  const problems = status.contexts.reduce((total, context) => total + count(context), 0);
  document.title = problems ? `(${problems}) rda` : "rda";
  find("version").textContent = `${status.version}, up for ${span(Math.max(0, Math.round(now - status.process.started)))}`;
  const main = find("contexts");
  const made = main.cloneNode(false);
  made.append(...(status.contexts.length
    ? status.contexts.map((context) => contextSection(context, now))
    : [element("p", { class: "card" }, "There are no contexts.")]));
  morph(main, made);
  announce(status);
}

function showLive(text, look) {
  if (page.live === text) return;
  page.live = text;
  const live = find("live");
  live.textContent = text;
  live.className = `badge ${look}`;
  if (look === "bad") find("announcements").textContent = page.told = "rda does not answer; trying again";
}

// A tab that nobody sees holds no connection: browsers have six for each host, and the agent may rest.
let source = null;

function connect() {
  if (source !== null || document.hidden) return;
  source = new EventSource("events");
  source.addEventListener("open", () => showLive("live", "good"));
  source.addEventListener("error", () => {
    showLive("rda does not answer", "bad");
    // After an answer that is an error, a browser does not try again by itself.
    if (source !== null && source.readyState === EventSource.CLOSED) {
      disconnect();
      setTimeout(connect, 5000);
    }
  });
  source.addEventListener("status", (event) => {
    page.status = JSON.parse(event.data);
    page.offset = page.status.now - Date.now() / 1000;
    draw();
  });
}

function disconnect() {
  if (source !== null) source.close();
  source = null;
}

document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
// Ages and spans go on while nothing happens.
setInterval(() => { if (!document.hidden) draw(); }, 5000);
connect();
