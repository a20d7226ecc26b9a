// The images of data sets and the processing page: keys for the previous and next image, and the values of sliders.
"use strict";

// On a phone the images come first.
if (window.matchMedia("(max-width: 46rem)").matches) {
  document.querySelectorAll("details[data-folds]").forEach((details) => { details.open = false; });
}

document.addEventListener("keydown", (event) => {
  const way = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  if (!way || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) {
    return;
  }
  if (event.target.closest("input, textarea, select")) {
    return; // There the keys move a cursor, a slider or a selection.
  }
  const link = document.querySelector(`a[rel=${way}]`);
  if (link) {
    event.preventDefault();
    link.click();
  }
});

document.addEventListener("input", (event) => {
  const slider = event.target;
  if (slider instanceof HTMLInputElement && slider.matches("[data-shows]")) {
    document.querySelector(`output[for="${slider.id}"]`).textContent = slider.value;
  }
});

// A slice has only one source.
const SOURCES = "#dataset, #scan, #phantom";
document.addEventListener("change", (event) => {
  if (event.target.matches(SOURCES) && event.target.value) {
    document.querySelectorAll(SOURCES).forEach((source) => {
      if (source !== event.target) {
        source.value = "";
      }
    });
  }
}, { capture: true }); // Before htmx reads the form.

// The images stay until the new ones arrive, instead of being replaced by a message in between.
document.addEventListener("htmx:beforeSwap", (event) => {
  const preview = event.detail.target;
  if (preview.id !== "preview" || !preview.querySelector(".previews")) {
    return;
  }
  const next = new DOMParser().parseFromString(event.detail.serverResponse, "text/html").getElementById("preview");
  if (!next?.hasAttribute("hx-get")) {
    return;
  }
  event.detail.shouldSwap = false;
  if (preview.getAttribute("hx-get") !== next.getAttribute("hx-get")) {
    preview.classList.add("stale");
    preview.setAttribute("hx-get", next.getAttribute("hx-get"));
    preview.setAttribute("hx-trigger", next.getAttribute("hx-trigger"));
    window.htmx.process(preview);
  }
});
