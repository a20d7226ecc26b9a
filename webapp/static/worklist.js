/* Keeps the worklist up to date during analysis, counts new results in the title, and helps with selection. The page works without this file. */
"use strict";

const POLL_MS = 2000;
const RETRY_MS = 10000;
const MOST_WATCHED = 50;  // The maximum number of scans in one request.
const title = document.title;
const scans = document.getElementById("scans");
const narrow = window.matchMedia("(max-width: 62rem)");
const table = () => document.getElementById("worklist");

// --- selection: all scans on the page, a study, a single scan

const boxesOf = (study) => Array.from(
  scans.querySelectorAll(`tbody tr${study ? `[data-study="${study}"]` : ""} input[name=id]`));

function showState(box, boxes) {
  const selected = boxes.filter((each) => each.checked).length;
  box.checked = selected === boxes.length && selected > 0;
  box.indeterminate = selected > 0 && selected < boxes.length;
  return selected;
}

function showSelection() {
  const form = document.getElementById("selection");
  if (!form) {
    return;
  }
  const selected = showState(document.getElementById("all"), boxesOf());
  scans.querySelectorAll("input[data-study]").forEach((box) => showState(box, boxesOf(box.dataset.study)));
  form.querySelector(".count").textContent = `${selected} selected`;
  form.classList.toggle("some", selected > 0);
  form.querySelectorAll("button").forEach((button) => { button.disabled = selected === 0; });
}

function selectSeveral(event) {
  const { id, dataset, checked } = event.target;
  if (id === "all" || dataset.study) {
    boxesOf(dataset.study).forEach((box) => { box.checked = checked; });
  }
  showSelection();
}

// --- one conditional request for all rows that may change

let etag = "";
let timer = 0;

function replaceRow(fresh) {
  const shown = document.getElementById(fresh.id);
  if (!shown || shown.dataset.version === fresh.dataset.version) {
    return;
  }
  const focused = shown.contains(document.activeElement) ? document.activeElement.tagName : null;
  fresh.querySelector("input").checked = shown.querySelector("input").checked;
  shown.replaceWith(fresh);
  if (focused) {
    fresh.querySelector(focused)?.focus();
  }
}

function showNews(count) {
  const news = document.getElementById("news");
  document.title = count ? `(${count}) ${title}` : title;
  news.hidden = !count;
  if (count && news.dataset.count !== String(count)) {
    news.dataset.count = count;
    news.textContent = `${count === 1 ? "1 new result" : `${count} new results`} since you opened this page. `;
    const again = document.createElement("a");
    again.href = window.location.href;
    again.textContent = "Refresh";
    news.append(again);
  }
}

function addressOfRows() {
  const address = new URL(table().dataset.rows, window.location.href);
  address.searchParams.set("opened", table().dataset.opened);
  Array.from(scans.querySelectorAll("tr[data-pending]")).slice(0, MOST_WATCHED)
    .forEach((row) => address.searchParams.append("id", row.id.slice("scan-".length)));
  return address;
}

async function refresh() {
  clearTimeout(timer);
  // The header marks an automatic request, so that it does not keep a session alive.
  const headers = { "HX-Request": "true", ...(etag && { "If-None-Match": etag }) };
  try {
    const answer = await fetch(addressOfRows(), { headers, cache: "no-store" });
    if (answer.headers.has("HX-Refresh")) {
      window.location.reload();
      return;
    }
    if (answer.status === 200) {
      etag = answer.headers.get("ETag") || "";
      const body = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("tbody");
      Array.from(body.rows).forEach((row) => replaceRow(document.adoptNode(row)));
      showNews(Number(body.dataset.news));
      showTimes(table());
      showSelection();
      table().toggleAttribute("data-more", "more" in body.dataset);
    } else if (answer.status !== 304) {
      timer = setTimeout(refresh, RETRY_MS);
      return;
    }
    if (table().hasAttribute("data-more")) {
      timer = setTimeout(refresh, POLL_MS);
    }
  } catch {
    timer = setTimeout(refresh, RETRY_MS);  // The network is unavailable for now.
  }
}

// --- reloading the list, with newly submitted scans; the selection is kept

async function reload() {
  try {
    const answer = await fetch(window.location.href, { cache: "no-store" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("scans");
    if (!answer.ok || !fresh) {
      return;
    }
    const selected = new Set(boxesOf().filter((box) => box.checked).map((box) => box.value));
    scans.replaceChildren(...fresh.childNodes);
    boxesOf().forEach((box) => { box.checked = selected.has(box.value); });
    for (const id of ["count", "orders"]) {
      document.getElementById(id).replaceWith(page.getElementById(id));
    }
    showNews(0);
    follow();
  } catch {
    // The network is unavailable for now; the list can be reloaded manually.
  }
}

function follow() {
  const filters = scans.querySelector("details.filters");
  if (filters && narrow.matches && !("filtered" in filters.dataset)) {
    filters.open = false;
  }
  if (!table()) {
    return;
  }
  etag = "";
  showSelection();
  showTimes(table());
  clearTimeout(timer);
  if (table().hasAttribute("data-more")) {
    timer = setTimeout(refresh, POLL_MS);
  }
}

// --- keyboard: J and K move from row to row, X selects; Enter opens, as with any link

function useKey(event) {
  const isTyping = event.target.matches("input:not([type=checkbox]), select, textarea");
  if (isTyping || event.altKey || event.ctrlKey || event.metaKey || document.querySelector("[popover]:popover-open")) {
    return;
  }
  const rows = Array.from(scans.querySelectorAll("#worklist tbody tr"));
  const current = rows.findIndex((row) => row.contains(document.activeElement));
  const step = { j: 1, k: -1 }[event.key.toLowerCase()];
  if (step) {
    const row = rows[Math.min(Math.max(current + step, 0), rows.length - 1)];
    row?.querySelector(".title a").focus();
  } else if (event.key.toLowerCase() === "x" && current >= 0) {
    rows[current].querySelector(".pick input").click();
  }
}

document.addEventListener("keydown", useKey);
scans.addEventListener("change", selectSeveral);
window.addEventListener("pageshow", showSelection);
document.addEventListener("submitted", reload);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && table()) {
    refresh();
  }
});
follow();
