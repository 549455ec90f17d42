"use strict";

// Keeps the regions marked with data-live as fresh as the server's page. Everything works
// without this script too; then a page is as fresh as its last load.
(() => {
  const regions = () => document.querySelectorAll("[data-live]");
  if (!regions().length || !window.EventSource) return;

  const lost = document.getElementById("connection");
  let busy = false;
  let again = false;

  // "5 s ago" stays true between two changes, in the words that formats.py makes.
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

  function span(seconds) {
    const [size, unit] = units.find(([size]) => seconds >= size) || [1, "s"];
    return `${Math.round(seconds / size)} ${unit}`;
  }

  function tellTime() {
    const now = Date.now() + ahead;
    for (const one of document.querySelectorAll("time[data-since], time[data-due]")) {
      const seconds = (now - Date.parse(one.dateTime)) / 1000;
      const ago = "since" in one.dataset ? seconds : -seconds;
      const text = ago < 1 ? "now" : "since" in one.dataset ? `${span(ago)} ago` : `in ${span(ago)}`;
      if (one.textContent !== text) one.textContent = text;
    }
  }

  // How far the learner's clock is ahead of the browser's.
  const clock = document.querySelector("meta[name=now]");
  let ahead = clock ? Date.parse(clock.content) - Date.now() : 0;

  // Which state of affairs the page shows: events name theirs, and one that is told before the
  // page listens would be lost otherwise.
  const shownBy = (page) => page.querySelector("meta[name=shown]")?.content;
  let shown = shownBy(document);

  // A region that somebody is using is not pulled away under their hands.
  const inUse = (region) =>
    region.contains(document.activeElement) || region.querySelector("details[open]") !== null;

  function replace(page) {
    for (const region of regions()) {
      const fresh = page.getElementById(region.id);
      if (!fresh || inUse(region) || fresh.innerHTML === region.innerHTML) continue;
      region.replaceChildren(...fresh.childNodes);
    }
    document.title = page.title;
    const told = page.querySelector("meta[name=now]");
    if (told) ahead = Date.parse(told.content) - Date.now();
    shown = shownBy(page);
    tellTime();
  }

  async function refresh() {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    try {
      // The page's own address: that of a form that was refused answers no GET.
      const answer = await fetch(document.body.dataset.page, { redirect: "manual", cache: "no-store" });
      if (answer.type === "opaqueredirect") location.reload(); // the session has ended
      else if (answer.ok) {
        replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
      }
    } catch {
      // The event stream says whether the learner is gone.
    }
    busy = false;
    if (again) {
      again = false;
      refresh();
    }
  }

  let events = null;

  function listen() {
    events = new EventSource("/api/events");
    events.addEventListener("changed", (event) => {
      if (event.data !== shown) refresh();
    });
    events.addEventListener("open", () => {
      if (!lost.hidden) refresh();
      lost.hidden = true;
    });
    events.addEventListener("error", () => {
      lost.hidden = false;
    });
  }

  // A page that nobody sees asks for nothing, and leaves its connection to others.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      events.close();
    } else {
      refresh();
      listen();
    }
  });
  listen();
  if (clock) setInterval(tellTime, 1000);
  document.addEventListener("focusout", () => setTimeout(refresh, 50));
})();
