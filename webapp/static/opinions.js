/* The opinions below the viewer: the form follows the slice, an ellipse is drawn on the picture, and Y and N agree and disagree.
   The page works without this file, but for marks. */

const SVG = "http://www.w3.org/2000/svg";
const LEAST = 0.01; // Of the picture: a smaller drag is a click.
let panel = null;
let form = null; // There is none until there is a result.
const part = (name) => form.querySelector(`[data-part=${name}]`);
const clamp = (value) => Math.min(Math.max(value, 0), 1);

/* The slice that the viewer shows, counted from 0; null while it shows another plane. */
function shownSlice() {
  const axial = document.querySelector("#viewer [data-plane=axial]");
  if (axial && axial.getAttribute("aria-pressed") !== "true") {
    return null;
  }
  const slider = document.querySelector("#viewer [data-part=slider]");
  return slider ? slider.valueAsNumber - 1 : 0;
}

// --- marks: an overlay in shares of the picture

let overlay = null;
let drawn = null; // The mark that is being drawn: where it began and where it is now.

function region() {
  const numbers = form.elements.region.value.split(",").map(Number);
  return numbers.length === 4 ? { x: numbers[0], y: numbers[1], rx: numbers[2], ry: numbers[3] } : null;
}

function markedSlice() {
  return form.elements.slice ? Number(form.elements.slice.value || 1) - 1 : 0;
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
  // What is enlarged with the picture, where the viewer has that.
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
  if (own && (drawn || markedSlice() === slice)) {
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
  part("mark-text").textContent = on ? "Drag an ellipse over the picture." : "";
}

function isMarking() {
  return part("mark").getAttribute("aria-pressed") === "true";
}

function setRegion(mark) {
  form.elements.region.value = mark ? [mark.x, mark.y, mark.rx, mark.ry].map((share) => share.toFixed(4)).join(",") : "";
  part("remove-mark").hidden = !mark;
  part("mark-text").textContent = mark ? "The mark will be saved with your opinion." : "";
  drawMarks();
}

function listenForMarks() {
  const onStage = (event) => form && isMarking() && shownSlice() !== null && event.target.closest?.("#viewer [data-part=stage]");
  // Before the viewer hears of it.
  document.addEventListener("pointerdown", (event) => {
    if (onStage(event) && event.button === 0) {
      event.preventDefault();
      event.stopPropagation();
      drawn = { from: placeOf(event), to: placeOf(event) };
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
    drawn = null;
    if (mark.rx < LEAST || mark.ry < LEAST) {
      drawMarks();
      return;
    }
    if (form.elements.slice) {
      form.elements.slice.value = shownSlice() + 1;
    }
    isEdited = true;
    setMarking(false);
    setRegion(mark);
  }, true);
  document.addEventListener("pointercancel", () => { drawn = null; drawMarks(); }, true);
}

// --- the form

let isEdited = false; // Nothing that somebody typed is replaced.

/* Fill the form with what this person said of the slice in it, or of the whole scan. */
function recall() {
  if (isEdited) {
    return;
  }
  const slice = form.elements.slice?.value ? Number(form.elements.slice.value) - 1 : null;
  const said = JSON.parse(panel.dataset.own).find((opinion) => opinion.slice === slice);
  if (!said) {
    form.querySelectorAll("[name=finding], [name=types]").forEach((box) => { box.checked = false; });
    form.elements.comment.value = "";
    setRegion(null);
    return;
  }
  form.querySelectorAll("[name=finding]").forEach((radio) => { radio.checked = radio.value === said.finding; });
  form.querySelectorAll("[name=types]").forEach((box) => { box.checked = said.types.includes(box.value); });
  form.elements.comment.value = said.comment;
  setRegion(said.region);
}

function goTo(slice) {
  const slider = document.querySelector("#viewer [data-part=slider]");
  if (slider) {
    slider.value = slice + 1;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

function start() {
  part("mark").addEventListener("click", () => {
    setMarking(!isMarking());
    document.getElementById("viewer").scrollIntoView({ block: "nearest" });
  });
  part("remove-mark").addEventListener("click", () => setRegion(null));
  part("this-slice")?.addEventListener("click", () => {
    if (shownSlice() !== null) {
      form.elements.slice.value = shownSlice() + 1;
      recall();
    }
  });
  form.elements.slice?.addEventListener("change", recall);
  form.addEventListener("input", (event) => { isEdited ||= event.target !== form.elements.slice; });
  if (!form.querySelector(".error, .message.error")) {
    recall();
  }
  setRegion(region());
}

function followViewer() {
  drawMarks();
  const place = document.querySelector("#viewer [data-part=place]");
  if (place) {
    new MutationObserver(drawMarks).observe(place, { childList: true, characterData: true, subtree: true });
  }
}

/* Take up the panel of the page, which comes anew with the result. */
function connect() {
  const found = document.getElementById("opinions");
  if (found === panel) {
    return;
  }
  panel = found;
  form = panel?.querySelector("[data-part=opinion-form]");
  if (!form) {
    return;
  }
  start();
  followViewer();
  panel.addEventListener("click", (event) => {
    const link = event.target.closest("[data-go-to]");
    if (link) {
      goTo(Number(link.dataset.goTo));
    }
  });
}

connect();
listenForMarks();
document.addEventListener("htmx:afterSettle", connect);
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input:not([type=range], [type=checkbox], [type=radio]), select, textarea");
  if (!form || isTyping || event.repeat || event.altKey || event.ctrlKey || event.metaKey || document.querySelector("dialog[open]")) {
    return;
  }
  panel.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`)?.click();
});
