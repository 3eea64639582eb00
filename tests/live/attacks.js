// What an attacker's page tries against rda at an address; a promise of [[name, what could be read], …].
// at: host and port. body: the creation of a container; the attacks differ in how they send it.
(at, body) => {
  const rda = `http://${at}`;
  // A refusal of rda's may be read by a page of the same origin; it tells nothing.
  const told = (text) => (text.includes('"message": "rda: ') ? "" : text);
  const read = (answer) => (answer.type === "opaque" ? "" : answer.text().then(told));
  const post = (url, more) => fetch(url, { method: "POST", body, ...more }).then(read);

  const loaded = (tag, url) =>
    new Promise((done) => {
      const one = document.createElement(tag);
      one.onload = () => done(tag === "img" ? "an image" : "");
      one.onerror = () => done("");
      one.src = url;
      document.body.append(one);
    });

  // A form that sends itself, in a frame: first the form is loaded, then the answer to it.
  const form = (url, kind, sandbox) =>
    new Promise((done) => {
      const frame = document.createElement("iframe");
      let loads = 0;
      if (sandbox) frame.sandbox = sandbox;
      frame.onload = () => {
        loads += 1;
        if (loads < 2) return;
        try {
          done(told(frame.contentDocument.body.innerText));
        } catch (error) {
          done("");
        }
      };
      setTimeout(done, 5000, "");
      frame.srcdoc =
        `<body onload="setTimeout(() => document.forms[0].submit())"><form method=post enctype="${kind}" action="${url}">` +
        `<textarea name='{"Image":"busybox","Hostname":"'>"}</textarea></form>`;
      document.body.append(frame);
    });

  const socket = (url) =>
    new Promise((done) => {
      const one = new WebSocket(url);
      one.onopen = () => {
        one.send("touch /taken\n");
        done("open");
      };
      one.onerror = () => done("");
    });

  const attacks = {
    simple: () => post(`${rda}/containers/create?name=simple`, { mode: "no-cors" }),
    typed: () => post(`${rda}/containers/create?name=typed`, { headers: { "Content-Type": "application/json" } }),
    chunked: () => post(`${rda}/containers/create?name=kept`, { mode: "no-cors", keepalive: true }),
    read: () => fetch(`${rda}/containers/json?all=1`).then(read),
    status: () => fetch(`${rda}/_rda/status`).then(read),
    pause: () => post(`${rda}/_rda/pause`, { mode: "no-cors" }),
    kill: () => post(`${rda}/containers/victim/kill`, { mode: "no-cors" }),
    remove: () => fetch(`${rda}/containers/victim?force=1`, { method: "DELETE" }).then(read),
    beacon: async () => (navigator.sendBeacon(`${rda}/containers/create?name=beacon`, body), ""),
    form: () => form(`${rda}/containers/create?name=form`, "text/plain"),
    sandboxed: () => form(`${rda}/containers/create?name=sandboxed`, "text/plain", "allow-scripts allow-forms"),
    encoded: () => form(`${rda}/containers/victim/kill`, "application/x-www-form-urlencoded"),
    image: () => loaded("img", `${rda}/containers/json`),
    script: () => loaded("script", `${rda}/containers/json`),
    attach: () => socket(`ws://${at}/containers/victim/attach/ws?stream=1&stdin=1&stdout=1`),
    redirected: () => post(`/redirect?${rda}/containers/create?name=redirected`, { mode: "no-cors" }),
  };
  return Promise.all(
    Object.entries(attacks).map(async ([name, attack]) => {
      try {
        return [name, await attack()];
      } catch (error) {
        return [name, ""]; // the browser tells the page nothing
      }
    }),
  );
};
