/* The opinions panel next to the viewer: an ellipse can be drawn on the current slice and stays with it, and Y and N agree and disagree.
   Opinions are saved without leaving the image. The page works without this file, except for marks. */

const SVG = "http://www.w3.org/2000/svg";
const TOAST_MS = 6000;
const LEAST = 0.01; // As a fraction of the image: a smaller drag is a click.
let panel = null;
let form = null; // There is no form until there is a result.
const part = (name) => form.querySelector(`[data-part=${name}]`);
const clamp = (value) => Math.min(Math.max(value, 0), 1);

/* The slice shown by the viewer, counted from 0; null while it shows another plane. */
function shownSlice() {
  const axial = document.querySelector("#viewer [data-plane=axial]");
  if (axial && axial.getAttribute("aria-pressed") !== "true") {
    return null;
  }
  const slider = document.querySelector("#viewer [data-part=slider]");
  return slider ? slider.valueAsNumber - 1 : 0;
}

// --- marks: an overlay in fractions of the image

let overlay = null;
let drawn = null; // The mark that is being drawn: its slice, where it began and where it is now.
let marked = null; // The slice that the mark in the form belongs to, even while another slice is shown.

function region() {
  const numbers = form.elements.region.value.split(",").map(Number);
  return numbers.length === 4 ? { x: numbers[0], y: numbers[1], rx: numbers[2], ry: numbers[3] } : null;
}

/* The slice in the form, counted from 0; null for the whole scan. A single slice is the whole scan. */
function chosenSlice() {
  if (!form.elements.slice) {
    return 0;
  }
  return form.elements.slice.value ? Number(form.elements.slice.value) - 1 : null;
}

function ellipse({ x, y, rx, ry }, kind, title) {
  const shape = document.createElementNS(SVG, "ellipse");
  Object.entries({ cx: x, cy: y, rx, ry, class: kind }).forEach(([name, value]) => shape.setAttribute(name, value));
  if (title) {
    const text = document.createElementNS(SVG, "title");
    text.textContent = title;
    shape.append(text);
  }
  return shape;
}

function drawMarks() {
  // The element that is enlarged with the image, if the viewer can zoom.
  const picture = document.querySelector("#viewer [data-part=picture]") || document.querySelector("#viewer [data-part=stage]");
  if (!picture) {
    return;
  }
  if (!overlay?.isConnected) {
    overlay = document.createElementNS(SVG, "svg");
    Object.entries({ class: "marks", viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" })
      .forEach(([name, value]) => overlay.setAttribute(name, value));
    picture.append(overlay);
  }
  const slice = shownSlice();
  const shapes = JSON.parse(panel.dataset.marks).filter((mark) => mark.slice === slice).map((mark) => ellipse(mark.region, "given", mark.by));
  const own = drawn ? between(drawn) : region();
  if (own && (drawn ? drawn.slice : marked) === slice) {
    shapes.push(ellipse(own, "new"));
  }
  overlay.replaceChildren(...shapes);
}

function between({ from, to }) {
  return { x: (from.x + to.x) / 2, y: (from.y + to.y) / 2, rx: Math.abs(to.x - from.x) / 2, ry: Math.abs(to.y - from.y) / 2 };
}

function placeOf(event) {
  const frame = overlay.getBoundingClientRect();
  return { x: clamp((event.clientX - frame.left) / frame.width), y: clamp((event.clientY - frame.top) / frame.height) };
}

function setMarking(on) {
  part("mark").setAttribute("aria-pressed", on);
  document.getElementById("viewer").classList.toggle("marking", on);
  part("mark-text").textContent = on ? "Drag an ellipse over the image." : markText();
}

function isMarking() {
  return part("mark").getAttribute("aria-pressed") === "true";
}

function markText() {
  if (!region()) {
    return "";
  }
  return form.elements.slice ? `The mark is on slice ${marked + 1}.` : "The mark will be saved with your opinion.";
}

function setRegion(mark, slice = chosenSlice()) {
  marked = mark ? slice : null;
  form.elements.region.value = mark ? [mark.x, mark.y, mark.rx, mark.ry].map((share) => share.toFixed(4)).join(",") : "";
  part("remove-mark").hidden = !mark;
  part("mark-text").textContent = markText();
  drawMarks();
}

/* A mark belongs to the slice on which it was drawn: choosing another one must not move it. */
function keepsMark() {
  if (!region() || !form.elements.slice || chosenSlice() === marked || !isEdited) {
    return true;
  }
  form.elements.slice.value = marked + 1;
  part("mark-text").textContent = `The mark is on slice ${marked + 1}. Save it or remove it before you choose another slice.`;
  return false;
}

function listenForMarks() {
  const onStage = (event) => form && isMarking() && shownSlice() !== null && event.target.closest?.("#viewer [data-part=stage]");
  // Before the viewer handles the event.
  document.addEventListener("pointerdown", (event) => {
    if (onStage(event) && event.button === 0) {
      event.preventDefault();
      event.stopPropagation();
      drawn = { slice: shownSlice(), from: placeOf(event), to: placeOf(event) };
    }
  }, true);
  document.addEventListener("pointermove", (event) => {
    if (drawn) {
      event.stopPropagation();
      drawn.to = placeOf(event);
      drawMarks();
    }
  }, true);
  document.addEventListener("pointerup", (event) => {
    if (!drawn) {
      return;
    }
    event.stopPropagation();
    const mark = between(drawn);
    const { slice } = drawn;
    drawn = null;
    if (mark.rx < LEAST || mark.ry < LEAST) {
      drawMarks();
      return;
    }
    if (form.elements.slice) {
      form.elements.slice.value = slice + 1;
    }
    isEdited = true;
    setMarking(false);
    setRegion(mark, slice);
  }, true);
  document.addEventListener("pointercancel", () => { drawn = null; drawMarks(); }, true);
}

// --- the form

let isEdited = false; // Text that somebody typed is never replaced.

/* Fill the form with this user's opinion on the form's slice, or on the whole scan. */
function recall() {
  if (isEdited) {
    return;
  }
  const slice = form.elements.slice ? chosenSlice() : null;
  const own = JSON.parse(panel.dataset.own).find((opinion) => opinion.slice === slice);
  if (!own) {
    form.querySelectorAll("[name=finding], [name=types]").forEach((box) => { box.checked = false; });
    form.elements.comment.value = "";
    setRegion(null);
    return;
  }
  form.querySelectorAll("[name=finding]").forEach((radio) => { radio.checked = radio.value === own.finding; });
  form.querySelectorAll("[name=types]").forEach((box) => { box.checked = own.types.includes(box.value); });
  form.elements.comment.value = own.comment;
  setRegion(own.region);
}

function chooseSlice() {
  if (keepsMark()) {
    recall();
  }
}

function goTo(slice) {
  const slider = document.querySelector("#viewer [data-part=slider]");
  if (slider) {
    slider.value = slice + 1;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

function start() {
  isEdited = false;
  part("mark").addEventListener("click", () => {
    setMarking(!isMarking());
    document.getElementById("viewer").scrollIntoView({ block: "nearest" });
  });
  part("remove-mark").addEventListener("click", () => {
    isEdited = true;
    setRegion(null);
  });
  part("this-slice")?.addEventListener("click", () => {
    if (shownSlice() !== null) {
      form.elements.slice.value = shownSlice() + 1;
      chooseSlice();
    }
  });
  form.elements.slice?.addEventListener("change", chooseSlice);
  form.addEventListener("input", (event) => { isEdited ||= event.target !== form.elements.slice; });
  if (!form.querySelector(".error, .message.error")) {
    recall();
  }
  setRegion(region());
}

// --- saving, next to the image: nothing scrolls, and a message confirms what was saved

const toast = document.getElementById("saved");
let until = 0;

function say(sentence, isError = false) {
  (document.fullscreenElement || document.body).append(toast); // In full screen, nothing outside this element is visible.
  toast.textContent = sentence;
  toast.classList.toggle("error", isError);
  toast.hidden = false;
  clearTimeout(until);
  until = setTimeout(() => { toast.hidden = true; }, isError ? 3 * TOAST_MS : TOAST_MS);
}

/* Replace this panel by the one that the server sent; the focus stays on the same button. */
function showPanel(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html").getElementById("opinions");
  const focused = panel.contains(document.activeElement) ? document.activeElement : null;
  panel.replaceWith(document.adoptNode(fresh));
  if (focused?.name) {
    fresh.querySelector(`[name="${CSS.escape(focused.name)}"][value="${CSS.escape(focused.value)}"]`)?.focus({ preventScroll: true });
  }
  document.dispatchEvent(new CustomEvent("htmx:afterSettle")); // The page attaches its handlers to the new elements.
}

async function save(event) {
  if (!event.target.matches("form.answers, [data-part=opinion-form]")) {
    return;
  }
  event.preventDefault();
  const data = new FormData(event.target, event.submitter);
  try {
    const answer = await fetch(event.target.action, { method: "POST", body: data, headers: { Accept: "application/json" } });
    if (answer.redirected) {
      throw new Error("You are logged out. Please log in again in another tab; nothing was saved.");
    }
    const reply = await answer.json();
    if (reply.next) {
      window.location.assign(reply.next);
      return;
    }
    if (!reply.panel) {
      throw new Error(reply.detail);
    }
    showPanel(reply.panel);
    if (reply.message) {
      say(reply.message);
    }
  } catch (error) {
    const isSentence = error instanceof Error && !(error instanceof TypeError || error instanceof SyntaxError) && error.message;
    say(isSentence ? error.message : "Your opinion was not saved because the server cannot be reached. Please try again.", true);
    event.target.querySelectorAll("button").forEach((button) => { button.disabled = false; });
  }
}

let watch = null;

function followViewer() {
  drawMarks();
  const place = document.querySelector("#viewer [data-part=place]");
  if (place) {
    watch?.disconnect();
    watch = new MutationObserver(drawMarks);
    watch.observe(place, { childList: true, characterData: true, subtree: true });
  }
}

/* Initialize the page's panel, which is replaced when the result arrives. */
function connect() {
  const current = document.getElementById("opinions");
  if (current === panel) {
    return;
  }
  panel = current;
  form = panel?.querySelector("[data-part=opinion-form]");
  if (!form) {
    return;
  }
  start();
  followViewer();
  panel.addEventListener("submit", save);
}

connect();
listenForMarks();
document.addEventListener("htmx:afterSettle", connect);
document.addEventListener("click", (event) => {
  const link = event.target.closest("[data-go-to]");
  if (link) {
    goTo(Number(link.dataset.goTo));
  }
});
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input:not([type=range], [type=checkbox], [type=radio]), select, textarea");
  if (!form || isTyping || event.repeat || event.altKey || event.ctrlKey || event.metaKey || document.querySelector("dialog[open]")) {
    return;
  }
  panel.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`)?.click();
});
