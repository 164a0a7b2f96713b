// The page reads itself anew every 15 seconds, while it is looked at and nobody is at work in it. Without this it is
// the same page, and one reloads it.
"use strict";

const PAUSE = 15000;

function atWork(main) {
  const selection = document.getSelection();
  return (main.contains(document.activeElement) && document.activeElement !== main)
    || (selection !== null && !selection.isCollapsed);
}

async function refresh() {
  const main = document.getElementById("main");
  if (document.hidden || atWork(main)) return;
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok) throw new Error(String(answer.status));
  const read = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = read.getElementById("main");
  if (atWork(main)) return;
  const open = [...main.querySelectorAll("details")].map((each) => each.open);
  [...fresh.querySelectorAll("details")].forEach((each, number) => {
    if (number < open.length) each.open = open[number];
  });
  const scrolled = [...main.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
  main.replaceChildren(...fresh.childNodes);
  [...main.querySelectorAll(".scroll")].forEach((each, number) => {
    each.scrollLeft = scrolled[number] || 0;
  });
  document.title = read.title;
  document.documentElement.classList.remove("stale");
}

setInterval(() => {
  refresh().catch(() => document.documentElement.classList.add("stale"));
}, PAUSE);
