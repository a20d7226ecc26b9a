/* The viewer of a scan: input from keys, wheel, pointer and buttons. viewer_drawing.js draws the output.
   Without these files the page shows one slice, its heat map on demand, and links to the slices to look at first. */
import { Drawing, LAYERS } from "./viewer_drawing.js";
import { Ruler } from "./viewer_ruler.js";
import { STEP, Zoom } from "./viewer_zoom.js";

const WHEEL_STEP = 40; // Scrolled pixels per slice: a notch of a wheel has 100, a touchpad sends many small events.
const DRAG_STEP = 1 / 200; // Fraction of the window's width per pixel.
const REST_MS = 300; // When a pointer rests on the image for this time, the value under it is shown.
const PAN_PX = 40;
const SWIPE_PX = 24; // Finger movement per slice.
const FAR = 10; // Voxels by which Shift and an arrow key move the ruler's point.
const ARROWS = { ArrowUp: [0, -1], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowRight: [1, 0] };
const ASKED = "hemoscan-asked"; // The page on which heat maps were requested, which reloads it, and its state.
const viewers = new WeakMap(); // Each opened viewer, as returned by `open`.

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const rounded = (value) => Number(value.toPrecision(3));

/* Attach the handlers of `viewer`; return its actions for keys: drawLayers() after new ones were drawn, toggle(layer), zoom, and if there are
   voxels scroll(steps), chooseWindow(number), counted from 1, showPlane(name) and the ruler. */
function open(viewer) {
  const part = (name) => viewer.querySelector(`[data-part=${name}]`);
  const drawing = new Drawing(viewer);
  const stage = part("stage");
  const zoom = new Zoom(stage, part("picture"), () => opened.ruler?.draw());
  drawing.zoom = zoom;
  drawing.watchPictures();
  const asked = askedFor();
  drawing.awaited = new Set(asked?.layers);

  part("full-screen").hidden = !document.fullscreenEnabled;
  const acts = {
    "full-screen": toggleFullScreen,
    "show-keys": showKeys,
    reload: () => drawing.reload(),
    "zoom-in": () => zoom.by(STEP),
    "zoom-out": () => zoom.by(1 / STEP),
    "zoom-fit": () => zoom.fit(),
    "ruler-on": () => opened.toggleRuler(),
  };
  viewer.addEventListener("click", (event) => acts[event.target.closest("button")?.dataset.part]?.());
  for (const layer of ["heat", "outline"]) {
    part(`${layer}-on`)?.addEventListener("change", () => drawing.drawLayers());
  }
  // After the opacity was set with the mouse, arrow keys scroll the slices again.
  part("frame").addEventListener("pointerup", (event) => event.target.matches("#opacity") && event.target.blur());

  const opened = {
    zoom,
    drawLayers: () => drawing.drawLayers(),
    toggle: (layer) => toggle(drawing, layer),
    layersOn: () => LAYERS.filter((layer) => part(`${layer}-on`)?.checked),
    ...(drawing.hasVoxels ? openVoxels(viewer, part, drawing, asked?.shown) : {}),
  };
  if (asked) {
    opened.drawLayers(); // They may be ready already.
  }
  return opened;
}

/* Switch a layer on or off, or request it; one that is being drawn is switched on when it is ready. */
function toggle(drawing, layer) {
  const box = drawing.part(`${layer}-on`);
  if (box?.disabled) {
    drawing.awaited.add(layer);
  } else {
    (box ?? drawing.part(`ask-${layer}`))?.click();
  }
}

/* Attach the handlers for scrolling, windowing and measuring in `viewer`, which starts with what was `asked` for, if anything; return its
   actions for keys. */
function openVoxels(viewer, part, drawing, asked) {
  const stage = part("stage");
  const slider = part("slider");
  const presets = drawing.presets;
  const positions = Object.fromEntries(Object.entries(drawing.planes).map(([name, { count }]) => [name, Math.floor(count / 2)]));
  const shown = {
    plane: "axial",
    index: slider ? slider.valueAsNumber - 1 : 0,
    level: Number(presets[0].dataset.level),
    width: Number(presets[0].dataset.width),
  };
  const ruler = part("ruler-on") && new Ruler(drawing, part);

  function draw() {
    drawing.draw({ ...shown });
    ruler?.draw();
  }

  function go(index) {
    const reached = clamp(index, 0, drawing.plane().count - 1);
    if (reached !== shown.index) {
      shown.index = reached;
      draw();
    }
  }

  function showPlane(name) {
    const button = viewer.querySelector(`[data-plane=${name}]`);
    if (!button || button.disabled || name === shown.plane) {
      return;
    }
    positions[shown.plane] = shown.index;
    Object.assign(shown, { plane: name, index: positions[name] });
    drawing.zoom.fit();
    draw();
  }

  function setWindow(level, width) {
    Object.assign(shown, { level: rounded(level), width: Math.max(rounded(width), 0.01) });
    draw();
  }

  const scroll = (steps) => go(shown.index + steps);
  if (slider) {
    slider.addEventListener("input", () => go(slider.valueAsNumber - 1));
    scrollByWheel(part("frame"), scroll);
    scrollBySwiping(stage, drawing.zoom, scroll);
    jumpByKeys([stage, slider], scroll);
  }
  windowByDragging(stage, shown, setWindow);
  tellValues(stage, drawing, ruler);
  viewer.addEventListener("click", (event) => {
    const { level, width, plane } = event.target.closest("button")?.dataset ?? {};
    const link = event.target.closest("[data-slice]");
    if (level) {
      setWindow(Number(level), Number(width));
    } else if (plane) {
      showPlane(plane);
    } else if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      showPlane("axial");
      go(Number(link.dataset.slice));
    }
  });

  drawing.onOnlyPictures = () => showPlane("axial");
  drawing.start({ ...shown });
  if (asked) {
    Object.assign(shown, asked);
    draw();
  }
  new ResizeObserver(() => ruler?.draw()).observe(stage);
  return {
    scroll: slider && scroll,
    showPlane,
    shown: () => (shown.plane === "axial" ? shown : { ...shown, plane: "axial", index: positions.axial }),
    ruler,
    toggleRuler: () => {
      drawing.load();
      ruler?.toggle();
    },
    chooseWindow: (number) => presets[number - 1]?.click(),
  };
}

/* Return, only once, what this page should show: { page, layers, shown }, the last if there are voxels; null if no heat maps were requested on it. */
function askedFor() {
  try {
    const asked = JSON.parse(sessionStorage.getItem(ASKED));
    sessionStorage.removeItem(ASKED);
    return asked?.page === window.location.pathname ? asked : null;
  } catch {
    return null; // There is no storage.
  }
}

function keepShown() {
  const viewer = viewers.get(document.getElementById("viewer"));
  const kept = { page: window.location.pathname, layers: [...viewer.layersOn(), "heat"], shown: viewer.shown?.() };
  try {
    sessionStorage.setItem(ASKED, JSON.stringify(kept));
  } catch {
    // There is no storage: the page starts from scratch.
  }
}

/* Show the value under a resting pointer, and at a click or tap, which also sets a point of the ruler. */
function tellValues(stage, drawing, ruler) {
  let rest = 0;
  stage.addEventListener("pointermove", (event) => {
    drawing.tellValue(drawing.toPicture(event.clientX, event.clientY));
    clearTimeout(rest);
    if (event.pointerType === "mouse") {
      rest = setTimeout(() => drawing.load(), REST_MS);
    }
  });
  stage.addEventListener("pointerleave", (event) => {
    clearTimeout(rest);
    if (event.pointerType === "mouse") {
      drawing.tellValue(null);
    }
  });
  stage.addEventListener("click", (event) => {
    if (drawing.zoom.wasDragged) {
      return;
    }
    const point = drawing.toPicture(event.clientX, event.clientY);
    drawing.load();
    drawing.tellValue(point);
    if (ruler?.isOn) {
      ruler.add(point);
    }
  });
}

function scrollByWheel(frame, scroll) {
  let turned = 0;
  frame.addEventListener("wheel", (event) => {
    if (event.ctrlKey) {
      return; // Zooms the image; outside of it, the browser zooms the page.
    }
    event.preventDefault();
    turned += event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : Math.sign(event.deltaY) * WHEEL_STEP;
    const steps = Math.trunc(turned / WHEEL_STEP);
    turned -= steps * WHEEL_STEP;
    scroll(clamp(steps, -1, 1));
  }, { passive: false });
}

/* A finger that moves sideways scrolls slices; up and down it scrolls the page. Two fingers zoom, and an enlarged image is panned
   (viewer_zoom.js); single taps set the points of the ruler. */
function scrollBySwiping(stage, zoom, scroll) {
  let from = null;
  stage.addEventListener("pointerdown", (event) => {
    from = event.pointerType === "touch" && event.isPrimary && zoom.scale === 1 ? event.clientX : null;
  });
  stage.addEventListener("pointermove", (event) => {
    if (from === null || !event.isPrimary || event.pointerType !== "touch" || zoom.pointers.size > 1) {
      return;
    }
    const steps = Math.trunc((event.clientX - from) / SWIPE_PX);
    if (steps) {
      from += steps * SWIPE_PX;
      scroll(steps);
    }
  });
  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, () => { from = null; });
  }
}

/* Arrows scroll slices wherever the focus is (`useKey`); these keys scroll the page elsewhere. */
function jumpByKeys(focused, scroll) {
  for (const element of focused) {
    element.addEventListener("keydown", (event) => {
      const steps = { PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
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

// The result is included with the image. A browser may refuse, as some do on phones: then nothing changes.
function toggleFullScreen() {
  const change = document.fullscreenElement ? document.exitFullscreen() : document.getElementById("result").requestFullscreen();
  change.catch(() => {});
}

function showKeys() {
  document.getElementById("keys").showModal();
}

/* Handle an arrow key: move the ruler's point while measuring, with Shift pan the enlarged image, otherwise scroll. */
function useArrow(viewer, [across, down], event) {
  if (!viewer || event.target.matches("#opacity")) {
    return false;
  }
  if (viewer.ruler?.isOn) {
    const far = event.shiftKey ? FAR : 1;
    viewer.ruler.move(across * far, down * far);
    return true;
  }
  if (event.shiftKey) {
    viewer.zoom.move(-across * PAN_PX, -down * PAN_PX);
    return viewer.zoom.scale > 1;
  }
  viewer.scroll?.(across + down);
  return Boolean(viewer.scroll);
}

/* Handle a key on the page of a scan; return whether it was handled. The scan may not have an image yet. */
function useKey(event) {
  const viewer = viewers.get(document.getElementById("viewer"));
  const arrow = ARROWS[event.key];
  if (arrow) {
    return useArrow(viewer, arrow, event);
  }
  const zooms = { "+": () => viewer?.zoom.by(STEP), "=": () => viewer?.zoom.by(STEP), "-": () => viewer?.zoom.by(1 / STEP) };
  if (zooms[event.key]) {
    zooms[event.key]();
    return true;
  }
  if (event.repeat) {
    return false;
  }
  const act = {
    0: () => viewer?.zoom.fit(),
    a: () => viewer?.showPlane?.("axial"),
    c: () => viewer?.showPlane?.("coronal"),
    s: () => viewer?.showPlane?.("sagittal"),
    f: toggleFullScreen,
    h: () => viewer?.toggle("heat"),
    o: () => viewer?.toggle("outline"),
    r: () => viewer?.ruler && viewer.toggleRuler(),
    j: () => document.querySelector("a[rel=next]")?.click(),
    k: () => document.querySelector("a[rel=prev]")?.click(),
    "?": showKeys,
  }[event.key.toLowerCase()];
  if (act) {
    act();
  } else if (viewer?.ruler?.isOn && event.key === "Enter" && event.target.matches("body, [data-part=stage]")) {
    viewer.ruler.addCursor();
  } else if (viewer?.ruler?.isOn && event.key === "Escape") {
    viewer.toggleRuler();
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
    viewers.get(viewer).drawLayers(); // The page around it was updated: heat maps are drawn by now.
  } else {
    viewers.set(viewer, open(viewer));
  }
}

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input:not([type=range], [type=checkbox]), select, textarea");
  if (isTyping || event.altKey || event.ctrlKey || event.metaKey || document.querySelector("dialog[open], [popover]:popover-open")) {
    return;
  }
  if (useKey(event)) {
    event.preventDefault();
  }
});
start();
document.addEventListener("htmx:afterSettle", start);
document.addEventListener("submit", (event) => {
  if (event.target.id === "ask-heat") {
    keepShown();
  }
});
