"use strict";

// Keeps the regions marked with data-live as fresh as the server's page. Everything works
// without this script too; then a page is as fresh as its last load.
(() => {
  const regions = () => document.querySelectorAll("[data-live]");
  if (!regions().length || !window.EventSource) return;

  const lost = document.getElementById("connection");
  let busy = false;
  let again = false;

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
  }

  async function refresh() {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    try {
      const answer = await fetch(location.pathname, { redirect: "manual", cache: "no-store" });
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
    let first = true;
    events = new EventSource("/api/events");
    events.addEventListener("changed", () => {
      if (!first) refresh(); // the first one tells what this page shows already
      first = false;
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
  document.addEventListener("focusout", () => setTimeout(refresh, 50));
})();
