/* What pages do beyond plain HTML. Every page works without this file. */
"use strict";

document.documentElement.classList.add("js");

// --- light or dark: the server renders the choice into the next page, so that no page flashes in the other colors

document.getElementById("theme").addEventListener("change", (event) => {
  const theme = event.target.value;
  const secure = window.location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `theme=${theme}; Path=/; Max-Age=31536000; SameSite=Lax${secure}`;
  document.documentElement.toggleAttribute("data-theme", theme !== "auto");
  if (theme !== "auto") {
    document.documentElement.dataset.theme = theme;
  }
});

// --- times: relative for a week, then the day; exact, local and with their time zone on hover

const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60]];
const WEEK_S = 7 * 86400;
const EXACT = { year: "numeric", month: "short", day: "numeric", hour: "numeric", minute: "2-digit", second: "2-digit", timeZoneName: "short" };
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

function showTimes(within = document) {
  within.querySelectorAll("time[datetime]").forEach((time) => {
    const at = new Date(time.dateTime);
    const seconds = (Date.now() - at) / 1000;
    const distance = Math.abs(seconds);
    const [unit, length] = UNITS.find(([, each]) => distance >= each) || [null, 0];
    const exact = at.toLocaleString([], EXACT);
    time.title = exact;
    if ("exact" in time.dataset) {
      time.textContent = exact;
    } else if (distance >= WEEK_S) {
      time.textContent = at.toLocaleDateString([], { dateStyle: "medium" });
    } else if (unit) {
      time.textContent = relative.format(-Math.sign(seconds) * Math.floor(distance / length), unit);
    } else {
      time.textContent = seconds < 0 ? "in a moment" : "just now";
    }
  });
}

// --- tables: on a phone the rows of lists become blocks with labeled cells; other wide tables scroll

const MATRICES = ".metrics, .confusion, .points, .controls, .comparisons, .types, .band";

function labelCells() {
  document.querySelectorAll(".scroll > table.data").forEach((table) => {
    const heads = table.tHead?.rows.length === 1 ? Array.from(table.tHead.rows[0].cells) : [];
    if (heads.length && !table.matches(MATRICES) && !table.querySelector("[rowspan], [colspan]")) {
      table.classList.add("stacks");
      // To a screen reader, blocks are not a table unless their roles say so.
      table.setAttribute("role", "table");
      heads.forEach((head) => head.setAttribute("role", "columnheader"));
      Array.from(table.rows).forEach((row) => row.setAttribute("role", "row"));
      Array.from(table.tBodies).flatMap((body) => Array.from(body.rows)).forEach((row) => {
        Array.from(row.cells).forEach((cell, place) => {
          cell.dataset.label = heads[place]?.textContent.trim() ?? "";
          cell.setAttribute("role", cell.tagName === "TH" ? "rowheader" : "cell");
        });
      });
    }
  });
  document.querySelectorAll(".scroll:has(> table.data, > svg.chart)").forEach((area) => {
    area.tabIndex = area.scrollWidth > area.clientWidth ? 0 : -1; // Scrollable areas must be reachable by keyboard.
  });
}

function arrange() {
  showTimes();
  labelCells();
}

arrange();
document.addEventListener("htmx:afterSettle", arrange);
setInterval(showTimes, 30000);
window.addEventListener("resize", labelCells);

// The slider over a scan sets the opacity of its heat map; delegated, because htmx inserts the slider later.
document.addEventListener("input", (event) => {
  const slider = event.target;
  if (!(slider instanceof HTMLInputElement) || !slider.matches("[data-opacity-of]")) {
    return;
  }
  const heat = document.getElementById(slider.dataset.opacityOf);
  if (heat) {
    heat.style.opacity = slider.value / 100;
  }
  if (slider.nextElementSibling) {
    slider.nextElementSibling.textContent = `${slider.value}%`;
  }
});

// The threshold slider, the field for a custom threshold and the named points are kept in sync; htmx fetches the performance at that threshold.
document.addEventListener("input", (event) => {
  const input = event.target;
  if (!(input instanceof HTMLInputElement)) {
    return;
  }
  if (input.matches("[data-moves]")) {
    const slider = document.getElementById(input.dataset.moves);
    slider.value = input.value || document.getElementById(slider.dataset.checks).dataset.at;
    document.getElementById(slider.dataset.checks).checked = true;
  } else if (input.matches("[data-at]")) {
    const own = input.dataset.unless && document.getElementById(input.dataset.unless).value;
    document.getElementById("threshold-slider").value = own || input.dataset.at;
  }
});

// Times are entered as they are displayed, in local time; the server expects UTC.
document.querySelectorAll("input[type=datetime-local]").forEach((input) => {
  if (input.value) {
    const at = new Date(`${input.value}Z`);
    input.value = new Date(at - at.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
  }
  document.querySelector(`label[for="${input.id}"] [data-utc-label]`)?.remove();
  input.form.addEventListener("formdata", (event) => {
    event.formData.set(input.name, new Date(input.value).toISOString().slice(0, 19));
  });
});

// Report immediately that files are too large, instead of after the upload.
document.addEventListener("change", (event) => {
  const files = event.target;
  if (!(files instanceof HTMLInputElement) || !files.matches("[data-max-mb]")) {
    return;
  }
  const bytes = Array.from(files.files).reduce((sum, file) => sum + file.size, 0);
  const tooLarge = bytes > files.dataset.maxMb * 1024 * 1024;
  files.setCustomValidity(tooLarge ? `Together, these files are larger than ${files.dataset.maxMb} MB.` : "");
  files.reportValidity();
});

// A second click must not submit a scan twice; returning to the page enables the button again.
document.addEventListener("submit", (event) => {
  if (event.target.matches("[data-once]")) {
    // Deferred until the form has been sent: its submit button is part of the form data unless it is disabled.
    const buttons = Array.from(event.target.elements).filter((each) => each.matches("button"));
    setTimeout(() => buttons.forEach((button) => { button.disabled = true; }));
  }
});
window.addEventListener("pageshow", () => {
  document.querySelectorAll("[data-once] button, button[form]").forEach((button) => { button.disabled = false; });
});
