/* Announces new results while a page is open: in the page, and by the browser once the user has allowed that with the button on the
   account page. Pages never ask for the permission by themselves. */
"use strict";

const NEWS_MS = 15000;
const RESUME_MS = 300000;
const STORE = "hemoscan-news";
const toast = document.getElementById("toast");
const worklist = document.getElementById("scans"); // Its list may still be empty.

// Where the last poll ended, and what it returned: each poll overlaps the previous one (`OVERLAP_S` in webapp/accounts/notifications.py), and
// users change pages faster than the polls follow each other.
let after = toast.dataset.after;
let known = new Set();

function resume() {
  try {
    const earlier = JSON.parse(sessionStorage.getItem(STORE));
    if (earlier && Date.parse(after) - Date.parse(earlier.after) < RESUME_MS) {
      known = new Set(earlier.results);
      after = worklist ? after : earlier.after; // The worklist shows earlier results anyway.
    }
  } catch {
    // There is no storage, or it contains something else.
  }
}

function keep() {
  try {
    sessionStorage.setItem(STORE, JSON.stringify({ after, results: [...known] }));
  } catch {
    // There is no storage: the next page starts from scratch.
  }
}

function words(count) {
  return count === 1 ? "A scan has a result." : `${count} scans have a result.`;
}

function showToast(results) {
  const seen = Number(toast.dataset.count || 0) + results.length;
  const link = document.createElement("a");
  const close = document.createElement("button");
  toast.dataset.count = seen;
  link.href = seen === 1 ? results[0] : toast.dataset.worklist;
  link.textContent = words(seen);
  close.type = "button";
  close.className = "quiet small";
  close.textContent = "Close";
  close.addEventListener("click", () => {
    toast.hidden = true;
    toast.dataset.count = 0;
  });
  toast.replaceChildren(link, close);
  toast.hidden = false;
}

// The tag keeps several open pages from announcing the same result more than once.
function notify(results) {
  const address = results.length === 1 ? results[0] : toast.dataset.worklist;
  const message = new Notification("Hemoscan", { body: words(results.length), tag: results.join() });
  message.addEventListener("click", () => {
    window.focus();
    window.location.assign(address);
  });
}

async function look() {
  try {
    // The header marks an automatic request, so that it does not keep a session alive.
    const answer = await fetch(`${toast.dataset.news}?after=${encodeURIComponent(after)}`, { headers: { "HX-Request": "true" }, cache: "no-store" });
    if (answer.status !== 200) {
      return; // The session has ended, or the service is restarting: the next poll will tell.
    }
    const news = await answer.json();
    const others = news.results.filter((address) => !known.has(address) && address !== window.location.pathname);
    after = news.now;
    known = new Set(news.results);
    keep();
    if (others.length) {
      if (document.hidden && "Notification" in window && Notification.permission === "granted") {
        notify(others);
      }
      if (!worklist) { // The worklist counts them itself.
        showToast(others);
      }
    }
  } catch {
    // The network is unavailable for now.
  }
}

resume();
keep();
if (Date.parse(toast.dataset.after) - Date.parse(after) >= NEWS_MS) {
  look();
}
setInterval(look, NEWS_MS);

// --- the button on the account page

const button = document.getElementById("allow-notifications");
const permission = document.getElementById("allowed-notifications");

function showPermission() {
  button.hidden = Notification.permission !== "default";
  permission.textContent = {
    granted: "This browser shows notifications while a page of Hemoscan is open in the background.",
    denied: "This browser blocks notifications from Hemoscan; you can allow them in its settings.",
    default: "",
  }[Notification.permission];
}

if (button && "Notification" in window) {
  showPermission();
  button.addEventListener("click", () => { Notification.requestPermission().then(showPermission); });
}
