/* What pages do beyond HTML. Every page works without this file. */
"use strict";

document.documentElement.classList.add("js");

// The slider over a scan sets how strongly its heat map is shown; delegated, because htmx brings the slider later.
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
    slider.nextElementSibling.textContent = `${slider.value} %`;
  }
});

// The slider of a threshold fills in the field and chooses it; htmx fetches what it would have found.
document.addEventListener("input", (event) => {
  const slider = event.target;
  if (slider instanceof HTMLInputElement && slider.matches("[data-sets]")) {
    document.getElementById(slider.dataset.sets).value = slider.value;
    document.getElementById(slider.dataset.checks).checked = true;
  }
});

// Say at once that files are too large, instead of after they were sent.
document.addEventListener("change", (event) => {
  const files = event.target;
  if (!(files instanceof HTMLInputElement) || !files.matches("[data-max-mb]")) {
    return;
  }
  const bytes = Array.from(files.files).reduce((sum, file) => sum + file.size, 0);
  const tooLarge = bytes > files.dataset.maxMb * 1024 * 1024;
  files.setCustomValidity(tooLarge ? `These files are larger than ${files.dataset.maxMb} MB together.` : "");
  files.reportValidity();
});

// A second click must not submit a scan twice; coming back to the page makes the button usable again.
document.addEventListener("submit", (event) => {
  if (event.target.matches("[data-once]")) {
    event.target.querySelectorAll("button").forEach((button) => { button.disabled = true; });
  }
});
window.addEventListener("pageshow", () => {
  document.querySelectorAll("[data-once] button").forEach((button) => { button.disabled = false; });
});
