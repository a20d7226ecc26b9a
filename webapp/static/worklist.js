/* The worklist follows the analysis, counts new results in the title, and helps to select. The page works without this file. */
"use strict";

const POLL_MS = 2000;
const RETRY_MS = 10000;
const title = document.title;
const table = document.getElementById("worklist");
const filters = document.querySelector("details.filters");
const phone = window.matchMedia("(max-width: 46rem)");

if (filters && phone.matches && !("filtered" in filters.dataset)) {
  filters.open = false;
}

// --- selection

function showSelection() {
  const boxes = Array.from(table.querySelectorAll("tbody input[type=checkbox]"));
  const selected = boxes.filter((box) => box.checked).length;
  const form = document.getElementById("selection");
  const all = document.getElementById("all");
  form.querySelector(".count").textContent = `${selected} selected`;
  form.classList.toggle("some", selected > 0);
  form.querySelectorAll("button").forEach((button) => { button.disabled = selected === 0; });
  all.checked = selected === boxes.length;
  all.indeterminate = selected > 0 && selected < boxes.length;
}

function selectAll(event) {
  if (event.target.id === "all") {
    table.querySelectorAll("tbody input[type=checkbox]").forEach((box) => { box.checked = event.target.checked; });
  }
  showSelection();
}

// --- one conditional request for all rows that may change

const watched = table ? Array.from(table.querySelectorAll("tr[data-pending]"), (row) => row.id.slice("scan-".length)) : [];
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

async function refresh() {
  clearTimeout(timer);
  const query = new URLSearchParams([...new URLSearchParams(window.location.search), ["opened", table.dataset.opened], ...watched.map((id) => ["id", id])]);
  // The header marks a request that no person made, so that it keeps no login alive.
  const headers = { "HX-Request": "true", ...(etag && { "If-None-Match": etag }) };
  try {
    const answer = await fetch(`${table.dataset.rows}?${query}`, { headers, cache: "no-store" });
    if (answer.headers.has("HX-Refresh")) {
      window.location.reload();
      return;
    }
    if (answer.status === 200) {
      etag = answer.headers.get("ETag") || "";
      const body = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("tbody");
      Array.from(body.rows).forEach((row) => replaceRow(document.adoptNode(row)));
      showNews(Number(body.dataset.news));
      showTimes(table);
      showSelection();
      if ("more" in body.dataset) {
        table.dataset.more = "";
      } else {
        delete table.dataset.more;
      }
    } else if (answer.status !== 304) {
      timer = setTimeout(refresh, RETRY_MS);
      return;
    }
    if ("more" in table.dataset) {
      timer = setTimeout(refresh, POLL_MS);
    }
  } catch {
    timer = setTimeout(refresh, RETRY_MS);  // The network is gone for now.
  }
}

if (table) {
  table.addEventListener("change", selectAll);
  showSelection();
  window.addEventListener("pageshow", showSelection);
  if ("more" in table.dataset) {
    timer = setTimeout(refresh, POLL_MS);
  }
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) {
      refresh();
    }
  });
}
