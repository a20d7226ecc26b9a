/* Tells of new results while a page is open: in the page, and by the browser once a person has allowed that with the button on the
   account page. It is never asked for by itself. */
"use strict";

const NEWS_MS = 15000;
const toast = document.getElementById("toast");
let after = toast.dataset.after;

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

// The tag keeps several open pages from telling of the same result more than once.
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
    // The header marks a request that no person made, so that it keeps no login alive.
    const answer = await fetch(`${toast.dataset.news}?after=${encodeURIComponent(after)}`, { headers: { "HX-Request": "true" }, cache: "no-store" });
    if (answer.status !== 200) {
      return; // The login is over, or the service is restarting: the next look tells.
    }
    const news = await answer.json();
    after = news.now;
    const others = news.results.filter((address) => address !== window.location.pathname);
    if (others.length) {
      if (document.hidden && "Notification" in window && Notification.permission === "granted") {
        notify(others);
      }
      if (!document.getElementById("worklist")) { // Which counts them itself.
        showToast(others);
      }
    }
  } catch {
    // The network is gone for now.
  }
}

setInterval(look, NEWS_MS);

// --- the button on the account page

const button = document.getElementById("allow-notifications");
const told = document.getElementById("allowed-notifications");

function showPermission() {
  button.hidden = Notification.permission !== "default";
  told.textContent = {
    granted: "This browser shows notifications while a page of Hemoscan is open in the background.",
    denied: "This browser does not show notifications of Hemoscan; its settings can allow them.",
    default: "",
  }[Notification.permission];
}

if (button && "Notification" in window) {
  showPermission();
  button.addEventListener("click", () => { Notification.requestPermission().then(showPermission); });
}
