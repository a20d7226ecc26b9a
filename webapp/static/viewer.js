/* The viewer of a series: what a person does with wheel, keys, pointer and buttons. What they see is drawn by viewer_drawing.js.
   Without these files the page shows one slice and links to those to look at first. */
import { Drawing } from "./viewer_drawing.js";

const WHEEL_STEP = 40; // Pixels of scrolling for a slice: a wheel's notch has 100, a touchpad tells many small ones.
const DRAG_STEP = 1 / 200; // Of the window's width, for a pixel.
const viewers = new WeakMap(); // The drawing of each viewer that has been opened.

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const rounded = (value) => Number(value.toPrecision(3));

/* Let a person scroll and window the series in `viewer`; return its drawing. */
function open(viewer) {
  const part = (name) => viewer.querySelector(`[data-part=${name}]`);
  const [stage, slider, strip] = ["stage", "slider", "strip"].map(part);
  const slices = Number(slider.max);
  const preset = viewer.querySelector("[data-level]");
  const shown = { index: slider.valueAsNumber - 1, level: Number(preset.dataset.level), width: Number(preset.dataset.width) };
  const drawing = new Drawing(viewer);

  function go(index) {
    const reached = clamp(index, 0, slices - 1);
    if (reached !== shown.index) {
      shown.index = reached;
      drawing.draw(shown);
    }
  }

  function setWindow(level, width) {
    Object.assign(shown, { level: rounded(level), width: Math.max(rounded(width), 0.01) });
    drawing.draw(shown);
  }

  slider.addEventListener("input", () => go(slider.valueAsNumber - 1));
  scrollByWheel(stage, (steps) => go(shown.index + steps));
  scrollByKeys(stage, slices, (steps) => go(shown.index + steps));
  windowByDragging(stage, shown, setWindow);
  if (strip) {
    pickOnStrip(strip, slices, go);
  }
  viewer.addEventListener("click", (event) => {
    const button = event.target.closest("[data-level]");
    const link = event.target.closest("[data-slice]");
    if (button) {
      setWindow(Number(button.dataset.level), Number(button.dataset.width));
    } else if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      go(Number(link.dataset.slice));
    }
  });

  drawing.draw(shown);
  drawing.moveToGpu(shown);
  return drawing;
}

function scrollByWheel(stage, scroll) {
  let turned = 0;
  stage.addEventListener("wheel", (event) => {
    if (event.ctrlKey) {
      return; // The browser zooms the page.
    }
    event.preventDefault();
    turned += event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : Math.sign(event.deltaY) * WHEEL_STEP;
    const steps = Math.trunc(turned / WHEEL_STEP);
    turned -= steps * WHEEL_STEP;
    scroll(clamp(steps, -1, 1));
  }, { passive: false });
}

function scrollByKeys(stage, slices, scroll) {
  stage.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -slices, End: slices }[event.key];
    if (steps && !event.altKey && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      scroll(steps);
    }
  });
}

function windowByDragging(stage, shown, setWindow) {
  let dragged = null;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button === 2 || (event.button === 0 && event.shiftKey)) {
      event.preventDefault();
      stage.setPointerCapture(event.pointerId);
      dragged = { x: event.clientX, y: event.clientY, level: shown.level, width: shown.width };
    }
  });
  stage.addEventListener("pointermove", (event) => {
    if (dragged) {
      const step = dragged.width * DRAG_STEP;
      setWindow(dragged.level + (dragged.y - event.clientY) * step, dragged.width + (event.clientX - dragged.x) * step);
    }
  });
  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, () => { dragged = null; });
  }
  stage.addEventListener("contextmenu", (event) => event.preventDefault());
}

function pickOnStrip(strip, slices, go) {
  function goToPointer(event) {
    const box = strip.getBoundingClientRect();
    go(Math.floor((event.clientX - box.left) / box.width * slices));
  }
  strip.addEventListener("pointerdown", (event) => {
    strip.setPointerCapture(event.pointerId);
    goToPointer(event);
  });
  strip.addEventListener("pointermove", (event) => {
    if (event.buttons) {
      goToPointer(event);
    }
  });
}

function start() {
  const viewer = document.getElementById("viewer");
  if (!viewer) {
    return;
  }
  if (viewers.has(viewer)) {
    viewers.get(viewer).drawHeatMap(); // The page around it is new: heat maps are drawn by now.
  } else {
    viewers.set(viewer, open(viewer));
  }
}

start();
document.addEventListener("htmx:afterSettle", start);
