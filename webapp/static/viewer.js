/* The viewer of a scan: what a person does with keys, wheel, pointer and buttons. What they see is drawn by viewer_drawing.js.
   Without these files the page shows one slice, its heat map on demand, and links to the slices to look at first. */
import { Drawing } from "./viewer_drawing.js";

const WHEEL_STEP = 40; // Pixels of scrolling for a slice: a wheel's notch has 100, a touchpad tells many small ones.
const DRAG_STEP = 1 / 200; // Of the window's width, for a pixel.
const ARROWS = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 };
const viewers = new WeakMap(); // Each viewer that has been opened, as `open` returns it.

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const rounded = (value) => Number(value.toPrecision(3));

/* Let a person use `viewer`; return what keys do with it: drawHeatMap() after new ones were drawn, toggleHeat(), and for a series
   scroll(steps) and chooseWindow(number), counted from 1. */
function open(viewer) {
  const part = (name) => viewer.querySelector(`[data-part=${name}]`);
  const drawing = new Drawing(viewer);
  const heatOn = part("heat-on");

  part("full-screen").hidden = !document.fullscreenEnabled;
  viewer.addEventListener("click", (event) => {
    if (event.target.closest("[data-part=full-screen]")) {
      toggleFullScreen();
    } else if (event.target.closest("[data-part=show-keys]")) {
      showKeys();
    }
  });
  heatOn?.addEventListener("change", () => drawing.drawHeatMap());
  // After the mouse has set the opacity, arrow keys belong to the slices again.
  part("frame").addEventListener("pointerup", (event) => event.target.matches("#opacity") && event.target.blur());

  return {
    drawHeatMap: () => drawing.drawHeatMap(),
    toggleHeat: () => heatOn?.click(),
    ...(part("slider") ? openSeries(viewer, part, drawing) : { scroll: null, chooseWindow: null }),
  };
}

/* Let a person scroll and window the series in `viewer`; return what keys do with it. */
function openSeries(viewer, part, drawing) {
  const [stage, slider] = ["stage", "slider"].map(part);
  const slices = Number(slider.max);
  const presets = [...viewer.querySelectorAll("[data-level]")];
  const shown = { index: slider.valueAsNumber - 1, level: Number(presets[0].dataset.level), width: Number(presets[0].dataset.width) };

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

  const scroll = (steps) => go(shown.index + steps);
  slider.addEventListener("input", () => go(slider.valueAsNumber - 1));
  scrollByWheel(part("frame"), scroll);
  jumpByKeys([stage, slider], slices, scroll);
  windowByDragging(stage, shown, setWindow);
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
  return { scroll, chooseWindow: (number) => presets[number - 1]?.click() };
}

function scrollByWheel(frame, scroll) {
  let turned = 0;
  frame.addEventListener("wheel", (event) => {
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

/* Arrows scroll slices wherever the focus is (`useKey`); these keys scroll the page elsewhere. */
function jumpByKeys(focused, slices, scroll) {
  for (const element of focused) {
    element.addEventListener("keydown", (event) => {
      const steps = { PageUp: -10, PageDown: 10, Home: -slices, End: slices }[event.key];
      if (steps && !event.altKey && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        scroll(steps);
      }
    });
  }
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

// The verdict goes with the picture. A browser may refuse, as some do on phones: then nothing changes.
function toggleFullScreen() {
  const change = document.fullscreenElement ? document.exitFullscreen() : document.getElementById("result").requestFullscreen();
  change.catch(() => {});
}

function showKeys() {
  document.getElementById("keys").showModal();
}

/* Do what a key means on the page of a scan; return whether it means anything. The scan may still be without a picture. */
function useKey(event) {
  const viewer = viewers.get(document.getElementById("viewer"));
  const steps = ARROWS[event.key];
  if (steps) {
    if (!viewer?.scroll || event.shiftKey || event.target.matches("#opacity")) {
      return false;
    }
    viewer.scroll(steps);
    return true;
  }
  if (event.repeat) {
    return false;
  }
  const act = {
    f: toggleFullScreen,
    h: viewer?.toggleHeat,
    j: () => document.querySelector("a[rel=next]")?.click(),
    k: () => document.querySelector("a[rel=prev]")?.click(),
    "?": showKeys,
  }[event.key.toLowerCase()];
  if (act) {
    act();
  } else if (viewer?.chooseWindow && /^[1-9]$/.test(event.key)) {
    viewer.chooseWindow(Number(event.key));
  } else {
    return false;
  }
  return true;
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

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input:not([type=range], [type=checkbox]), select, textarea");
  if (isTyping || event.altKey || event.ctrlKey || event.metaKey || document.querySelector("dialog[open]")) {
    return;
  }
  if (useKey(event)) {
    event.preventDefault();
  }
});
start();
document.addEventListener("htmx:afterSettle", start);
