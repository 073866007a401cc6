// The live part of the pages. Everything works without it; with it, nothing moves under a pointer, and no button acts
// before somebody could have read what stands beside it.
"use strict";

const ARMING_MS = 500; // How long a button rests after it appeared, moved, or the window came back.
const RESULT_MS = 4000; // How long a result stays when nobody looks at the list.
const ANSWER_MS = 10000; // How long the guardian may take for an answer.
const QUIET_MS = 40000; // Without a heartbeat for so long, the connection is lost.
const find = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Makes elements of HTML that the server has rendered and escaped.
function elements(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}

// Times in the browser's own zone.
function localTimes(root) {
  for (const time of all("time[datetime]", root)) {
    const date = new Date(time.dateTime);
    if (!Number.isNaN(date.getTime())) {
      time.textContent = date.toLocaleTimeString(undefined, { hour12: false });
      time.title = date.toLocaleString();
    }
  }
}

// ---- The connection: one EventSource, and a way back when it is lost or the session is over.

const connection = find("#connection");
let online = false;
let lastEvent = performance.now();

function setOnline(now, text = "") {
  online = now;
  connection.hidden = now;
  connection.textContent = text;
  document.body.dataset.online = String(now);
  armAll();
}

// Whether nobody sees this page, nor would hear of it: then the guardian calls in its own ways.
function isAway() {
  return document.hidden && !(window.Notification && Notification.permission === "granted");
}

// Opens a stream; `handlers` are functions by event name.
function listen(url, handlers) {
  let source;
  let wait = 500;
  let timer;
  let wasAway = false;
  const open = () => {
    clearTimeout(timer);
    wasAway = isAway();
    source = new EventSource(wasAway && url === "/events" ? "/events?away" : url);
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => {
        lastEvent = performance.now();
        handle(JSON.parse(event.data));
      });
    }
    source.addEventListener("heartbeat", () => { lastEvent = performance.now(); });
    source.addEventListener("sync", () => { wait = 500; setOnline(true); });
    source.onerror = () => lost();
  };
  const lost = () => {
    source.close();
    clearTimeout(timer);
    setOnline(false, "Connection lost, reconnecting …");
    timer = setTimeout(retry, wait);
    wait = Math.min(wait * 2, 8000);
  };
  const retry = async () => {
    let status = 0;
    try {
      // `HEAD` is not served, and this answer is small: it tells whether the session is over.
      status = (await fetch("/session", { headers: { accept: "application/json" }, cache: "no-store" })).status;
    } catch { /* still away */ }
    if (status === 401) {
      setOnline(false, "You are logged out. Run “cloister approvals open” in a terminal to log in again.");
      timer = setTimeout(retry, 8000);
    } else if (status === 200) {
      open();
    } else {
      lost();
    }
  };
  setInterval(() => {
    if (online && performance.now() - lastEvent > QUIET_MS) { lost(); }
    // A look at another tab is not being away.
    if (online && isAway() && !wasAway) { source.close(); open(); }
  }, 5000);
  document.addEventListener("visibilitychange", () => {
    if (online && wasAway && !isAway()) { source.close(); open(); }
  });
  open();
}

// ---- Arming: a button acts when it has been in its place, in a window that somebody looks at, for a while.

const places = new WeakMap(); // card → where it was
const armedAt = new WeakMap(); // card → when it will be armed
let windowArmedAt = performance.now() + ARMING_MS;

function armAll() {
  const now = performance.now();
  let next = Infinity;
  for (const card of all(".card")) {
    const at = Math.max(armedAt.get(card) ?? 0, windowArmedAt);
    const isArmed = online && now >= at && !card.classList.contains("ended") && !card.dataset.busy;
    card.dataset.armed = String(isArmed);
    for (const button of all("button[data-action]", card)) { setButton(button, isArmed); }
    if (at > now) { next = Math.min(next, at - now); }
  }
  for (const group of all(".group")) {
    const at = Math.max(armedAt.get(group) ?? 0, windowArmedAt);
    setButton(find("[data-action=deny-all]", group), online && now >= at && !group.dataset.busy);
    if (at > now) { next = Math.min(next, at - now); }
  }
  for (const button of all("[data-action=undo]")) {
    const at = Math.max(armedAt.get(button) ?? 0, windowArmedAt);
    setButton(button, online && now >= at);
    if (at > now) { next = Math.min(next, at - now); }
  }
  for (const button of all("#logout")) { setButton(button, online && now >= windowArmedAt); }
  if (windowArmedAt > now) { next = Math.min(next, windowArmedAt - now); }
  if (next < Infinity) { setTimeout(armAll, next + 1); }
}

function setButton(button, isArmed) {
  if (button.disabled === isArmed) {
    button.disabled = !isArmed;
    button.setAttribute("aria-disabled", String(!isArmed));
  }
}

function disarm(element) { armedAt.set(element, performance.now() + ARMING_MS); }

// Disarms whatever is not where it was. Scrolling moves nothing: the user does it.
function watchPlaces() {
  for (const element of all(".card, .group, [data-action=undo]")) {
    const box = element.getBoundingClientRect();
    const scrolled = scrollY + (element.closest(".decisions")?.scrollTop ?? 0);
    const place = `${Math.round(box.left + scrollX)} ${Math.round(box.top + scrolled)} ${Math.round(box.width)} ${Math.round(box.height)}`;
    if (places.get(element) !== place) {
      places.set(element, place);
      disarm(element);
    }
  }
  armAll();
}

function windowIsBack() {
  windowArmedAt = performance.now() + ARMING_MS;
  armAll();
}

// ---- The main page.

function requestsPage() {
  const list = find("#pending");
  const area = find("#requests");
  const newBar = find("#new");
  const announce = find("#announce");
  const deadlines = new WeakMap(); // card → when it ends, by this browser's own steady clock
  let held = []; // what waits until nobody is inside the list: { fragment, isWhole }
  let pointerInside = false;
  let count = Number(find("#count").textContent) || 0;

  const cards = (root = list) => all(".card", root);
  const waitingCards = () => cards().filter((card) => !card.classList.contains("ended"));
  const cardOf = (id) => document.getElementById(`request-${id}`);
  // A pointer that rests where the page was loaded has not entered; a finger that is gone hovers for ever.
  const hovers = () => matchMedia("(hover: hover)").matches && area.matches(":hover");
  const isInUse = () => cards().length > 0 && (pointerInside || hovers() || list.contains(document.activeElement));

  function setCount(now) {
    count = now;
    find("#count").textContent = String(now);
    find("#count").hidden = now === 0;
    document.title = now > 0 ? `(${now}) Cloister` : "Cloister";
    find("#icon").href = now > 0 ? "/assets/waiting.svg" : "/assets/idle.svg";
    showEmpty();
  }
  function showEmpty() {
    find("#empty").hidden = count > 0 || cards().length > 0;
  }

  // What a card needs once it is known: its end, its local time.
  function prepare(root) {
    const now = performance.now();
    for (const card of all(".card", root)) {
      if (!deadlines.has(card)) { deadlines.set(card, now + Number(card.dataset.leftMs)); }
    }
    localTimes(root);
  }

  function tidyGroups() {
    for (const group of all(".group", list)) {
      const inside = cards(group);
      const waiting = inside.filter((card) => !card.classList.contains("ended"));
      find("[data-group-count]", group).textContent = String(waiting.length);
      if (inside.length === 0) { group.remove(); }
    }
  }

  function place({ fragment, isWhole }) {
    if (isWhole) {
      // A card that is here already keeps what was chosen and typed in it.
      for (const card of cards(fragment)) {
        const here = cardOf(card.dataset.requestId);
        if (here && !here.classList.contains("ended")) { card.replaceWith(here); }
      }
      list.replaceChildren(fragment);
    } else {
      const card = find(".card", fragment);
      if (!card || cardOf(card.dataset.requestId)) { return; }
      const group = find(`.group[data-group="${CSS.escape(card.dataset.cloister)}"]`, list);
      if (group) { find(".group-top", group).after(fragment); } else { list.prepend(fragment); }
    }
  }

  // Shows what was held back; what ended long ago goes.
  function release() {
    for (const card of cards()) {
      if (card.dataset.goes) { card.remove(); }
    }
    held.forEach(place);
    held = [];
    tidyGroups();
    showHeld();
    showEmpty();
    watchPlaces();
  }
  function releaseWhenFree() {
    if (!isInUse()) { release(); }
  }
  function showHeld() {
    const shown = new Set(cards().map((card) => card.dataset.requestId));
    const fresh = new Set(held.flatMap(({ fragment }) => cards(fragment)).map((card) => card.dataset.requestId));
    const number = [...fresh].filter((id) => !shown.has(id)).length;
    newBar.hidden = number === 0;
    newBar.textContent = number === 1 ? "1 new request – show" : `${number} new requests – show`;
  }
  function hold(fragment, isWhole) {
    prepare(fragment);
    if (isWhole) { held = []; }
    held.push({ fragment, isWhole });
    if (isInUse()) { showHeld(); } else { release(); }
  }

  // A card that has ended keeps its place and its size until nobody is there.
  function end(card, kind, text) {
    if (card.classList.contains("ended")) { return; }
    const hadFocus = card.contains(document.activeElement) && card !== document.activeElement;
    card.style.height = `${card.getBoundingClientRect().height}px`;
    card.classList.add("ended");
    card.dataset.kind = kind;
    const result = find("[data-result]", card);
    result.textContent = text;
    result.hidden = false;
    if (hadFocus) { card.focus({ preventScroll: true }); }
    setTimeout(() => { card.dataset.goes = "true"; releaseWhenFree(); }, RESULT_MS);
    tidyGroups();
    armAll();
  }
  function ended(id, kind, text) {
    for (const { fragment } of held) {
      for (const card of cards(fragment)) {
        if (card.dataset.requestId === id) { card.remove(); }
      }
    }
    const card = cardOf(id);
    if (card) { end(card, kind, text); }
    showHeld();
  }

  function tell(data) {
    announce.textContent = `New request: ${data.cloister} wants ${data.host}`;
    if (window.Notification && Notification.permission === "granted" && (document.hidden || !document.hasFocus())) {
      const note = new Notification("Cloister: a request waits", { body: `${data.cloister}: ${data.host}`, tag: data.id, silent: true });
      note.onclick = () => { window.focus(); note.close(); };
    }
  }

  const decisions = find("#decisions-list");
  const sides = {
    decisions: (html) => { decisions.replaceChildren(elements(html)); localTimes(decisions); watchPlaces(); },
    cloisters: (html) => { find("#cloisters-list").replaceChildren(elements(html)); watchPlaces(); },
    problems: (html) => {
      // It stands above the cards and would move them.
      find("#problems").replaceChildren(elements(html));
      watchPlaces();
    },
  };
  // The side column stands still while somebody is there.
  const side = find(".side");
  let pointerInSide = false;
  const heldSides = new Map();
  const isSideInUse = () => pointerInSide || side.contains(document.activeElement)
    || matchMedia("(hover: hover)").matches && side.matches(":hover");
  function setSide(name, html) {
    if (isSideInUse()) { heldSides.set(name, html); } else { heldSides.delete(name); sides[name](html); }
  }
  function releaseSides() {
    if (isSideInUse()) { return; }
    for (const [name, html] of heldSides) { sides[name](html); }
    heldSides.clear();
  }
  side.addEventListener("pointerenter", () => { pointerInSide = true; });
  side.addEventListener("pointerleave", () => { pointerInSide = false; setTimeout(releaseSides, 0); });
  side.addEventListener("focusout", () => setTimeout(releaseSides, 0));
  let heldProblems = null;
  function setProblems(html) {
    if (isInUse()) { heldProblems = html; } else { sides.problems(html); }
  }

  listen("/events", {
    sync(data) {
      // Somebody has logged in anew: the forms here are of a session that is over.
      if (data.csrf !== document.body.dataset.csrf) {
        location.reload();
        return;
      }
      const fragment = elements(data.list);
      const now = new Set(cards(fragment).map((card) => card.dataset.requestId));
      for (const card of waitingCards()) {
        if (!now.has(card.dataset.requestId)) { end(card, "over", "It is over"); }
      }
      // The cards that are here already are the same: nothing moves for them.
      const here = new Set(waitingCards().map((card) => card.dataset.requestId));
      const isSame = here.size === now.size && cards(fragment).every((card) => here.has(card.dataset.requestId));
      if (isSame) {
        held = [];
        for (const card of cards(fragment)) {
          deadlines.set(cardOf(card.dataset.requestId), performance.now() + Number(card.dataset.leftMs));
        }
        showHeld();
      } else {
        hold(fragment, true);
      }
      setSide("decisions", data.decisions);
      setSide("cloisters", data.cloisters);
      setProblems(data.problems);
      setCount(data.count);
    },
    list(data) { hold(elements(data.list), true); setCount(data.count); },
    added(data) { hold(elements(data.html), false); setCount(data.count); tell(data); },
    changed(data) {
      for (const root of [list, ...held.map(({ fragment }) => fragment)]) {
        for (const card of cards(root)) {
          if (card.dataset.requestId === data.id) { find("[data-waiting]", card).textContent = data.waiting; }
        }
      }
    },
    ended(data) { ended(data.id, data.kind, data.text); setCount(data.count); },
    decisions(data) { setSide("decisions", data.html); },
    cloisters(data) { setSide("cloisters", data.html); },
    problems(data) { setProblems(data.html); },
  });

  // ---- Pointer and focus.

  const leaveSoon = () => setTimeout(() => {
    if (!isInUse() && heldProblems !== null) { sides.problems(heldProblems); heldProblems = null; }
    releaseWhenFree();
  }, 0);
  area.addEventListener("pointerenter", () => { pointerInside = true; });
  area.addEventListener("pointerleave", () => { pointerInside = false; leaveSoon(); });
  list.addEventListener("focusout", leaveSoon);
  newBar.addEventListener("click", () => { release(); watchPlaces(); });

  // ---- Answers.

  function say(card, text) {
    let line = find(":scope > .error", card);
    if (!line) {
      line = document.createElement("p");
      line.className = "error";
      line.setAttribute("role", "alert");
      card.append(line);
    }
    line.textContent = text;
  }

  async function post(url, fields) {
    const answer = await fetch(url, {
      method: "POST", body: fields, headers: { accept: "application/json" }, signal: AbortSignal.timeout(ANSWER_MS),
    });
    const data = await answer.json().catch(() => ({}));
    return { ok: answer.ok, status: answer.status, data };
  }

  document.addEventListener("submit", async (event) => {
    const { target: form, submitter } = event;
    const action = submitter?.dataset.action;
    if (!action) { return; }
    event.preventDefault();
    if (submitter.disabled || !online) { return; }
    const card = form.closest(".card");
    const group = form.closest(".group");
    const fields = new URLSearchParams(new FormData(form, submitter));
    // That is for forms without a script; here the buttons have rested.
    fields.delete("shown");
    if (action === "deny-all") {
      // What stands there now, and not what stood there when the form was made.
      fields.delete("id");
      for (const inside of cards(group)) {
        if (!inside.classList.contains("ended")) { fields.append("id", inside.dataset.requestId); }
      }
    }
    const busy = card ?? (action === "deny-all" ? group : null);
    if (busy) { busy.dataset.busy = "true"; }
    // After a click the focus goes, so that new cards may come when the pointer has left.
    if (byPointer) { document.activeElement?.blur(); }
    armAll();
    try {
      const { ok, status, data } = await post(submitter.getAttribute("formaction") ?? form.getAttribute("action"), fields);
      if (ok && card) {
        ended(data.id, { allowed: "allowed", denied: "denied" }[data.status] ?? "over", data.text);
      } else if (ok) {
        announce.textContent = data.text;
        if (action === "undo") { takenBack(form); }
      } else if (card && status === 404) {
        ended(card.dataset.requestId, "over", data.hint ?? "It is over");
      } else {
        const text = data.hint ?? "The answer did not arrive.";
        say(card ?? group ?? form.closest("li") ?? form, text);
      }
    } catch {
      say(card ?? group ?? form.closest("li") ?? form, "The guardian did not answer; try again.");
    }
    if (busy) { delete busy.dataset.busy; }
    watchPlaces();
  });

  // The column may be held: what was taken back says so itself, in the same place.
  function takenBack(form) {
    form.style.height = `${form.getBoundingClientRect().height}px`;
    form.textContent = "Taken back.";
  }

  // Whether the last action was one of the pointer.
  let byPointer = false;
  document.addEventListener("pointerdown", () => { byPointer = true; }, true);

  // ---- Keys.

  function step(by) {
    const there = waitingCards();
    if (there.length === 0) { return; }
    const here = document.activeElement?.closest?.(".card");
    const index = there.indexOf(here);
    const next = index < 0 ? (by > 0 ? 0 : there.length - 1) : Math.min(Math.max(index + by, 0), there.length - 1);
    // Whoever moves on has not read what is there.
    if (there[next] !== here) { disarm(there[next]); armAll(); }
    there[next].focus({ preventScroll: true });
    there[next].scrollIntoView({ block: "nearest" });
  }
  function press(selector) {
    const card = document.activeElement?.closest?.(".card");
    const button = card && find(selector, card);
    if (button && card.dataset.armed === "true" && !button.disabled) { button.click(); }
  }
  const keys = {
    j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1),
    a: () => press(".quick [data-action=allow][data-scope=once]"),
    s: () => press(".quick [data-action=allow][data-scope=session]"),
    d: () => press(".quick [data-action=deny]"),
    n: () => { if (!newBar.hidden) { release(); } },
    Escape: () => { document.activeElement?.blur(); leaveSoon(); },
    "?": () => { find("#keys").hidden = !find("#keys").hidden; watchPlaces(); },
  };
  document.addEventListener("keydown", (event) => {
    byPointer = false;
    const isText = event.target.closest?.("input, select, textarea");
    if (event.key === "Enter" && isText) { event.preventDefault(); }
    // A key that is held down, or was pressed for something else, answers nothing.
    if (event.repeat && event.target.closest?.("button[data-action]")) { event.preventDefault(); }
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.isComposing) { return; }
    if (isText && event.key !== "Escape") { return; }
    const arrows = event.key.startsWith("Arrow");
    if (arrows && !list.contains(document.activeElement)) { return; }
    const handle = Object.hasOwn(keys, event.key) ? keys[event.key] : null;
    if (handle) {
      event.preventDefault();
      handle();
    }
  });

  // ---- Time that is left, by the steady clock.

  setInterval(() => {
    const now = performance.now();
    for (const card of waitingCards()) {
      const left = Math.max(0, (deadlines.get(card) ?? now) - now);
      find("progress", card).value = left;
      find("[data-left]", card).textContent = `${Math.ceil(left / 1000)} s left`;
      card.classList.toggle("late", left < 10000);
    }
  }, 500);

  // ---- Notifications: asked for by a click, silent.

  const notify = find("#notify");
  if (window.Notification && Notification.permission === "default") {
    notify.hidden = false;
    notify.addEventListener("click", async () => { notify.hidden = (await Notification.requestPermission()) !== "default"; });
  }

  find("#keys").hidden = false;
  find("#flash")?.setAttribute("tabindex", "-1");
  new ResizeObserver(watchPlaces).observe(document.body);
  new ResizeObserver(watchPlaces).observe(list);
  window.addEventListener("resize", watchPlaces);
  list.addEventListener("toggle", watchPlaces, true);
  prepare(document);
  watchPlaces();
}

// ---- The log.

function logPage() {
  const rows = find("#rows");
  const MAX_ROWS = 200;
  const show = () => {
    localTimes(rows);
    find("#log-empty").hidden = rows.rows.length > 0;
  };
  if (find("#log-problem")) { return; }
  listen(`/log/events${location.search}`, {
    sync(data) {
      rows.replaceChildren(elements(data.html));
      find("#log-state").textContent = "New records appear by themselves.";
      show();
    },
    rows(data) {
      const isAtEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
      rows.append(elements(data.html));
      while (rows.rows.length > MAX_ROWS) { rows.rows[0].remove(); }
      show();
      if (isAtEnd) { scrollTo({ top: document.documentElement.scrollHeight }); }
    },
  });
}

window.addEventListener("focus", windowIsBack);
window.addEventListener("pageshow", windowIsBack);
document.addEventListener("visibilitychange", windowIsBack);
({ requests: requestsPage, log: logPage })[document.body.dataset.page]?.();
