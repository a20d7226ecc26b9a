/* A series of slices: scroll, window, heat maps. Pictures show them at once; where there is WebGL 2, NiiVue takes over when it has
   loaded the whole series. Without this file the page shows one slice and links to those to look at first. */
"use strict";

(() => {
  const WHEEL_STEP = 40; // Pixels of scrolling for a slice: a wheel's notch has 100, a touchpad tells many small ones.
  const DRAG_STEP = 1 / 200; // Of the window's width, for a pixel.
  const AHEAD = 2; // Pictures on each side that are fetched before they are asked for.
  const MOST_VOXELS = 2 ** 27; // 512 slices of 512 x 512, 256 MB: more is not asked of a browser.
  const viewers = new WeakMap();

  function open(viewer) {
    const part = (name) => viewer.querySelector(`[data-part=${name}]`);
    const [stage, image, heat, slider, place, strip, here, told] = ["stage", "image", "heat", "slider", "place", "strip", "here", "window"].map(part);
    const slices = Number(slider.max);
    const probabilities = JSON.parse(viewer.dataset.probabilities);
    const presets = [...viewer.querySelectorAll("[data-level]")];
    const shown = { index: slider.valueAsNumber - 1, level: Number(presets[0].dataset.level), width: Number(presets[0].dataset.width) };
    let onGpu = null;

    const address = (index) => `${viewer.dataset.scan}/slices/${index}.png?level=${shown.level}&width=${shown.width}`;
    const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
    const rounded = (value) => Number(value.toPrecision(3));

    // One picture is fetched at a time; what was passed by meanwhile is left out.
    let fetching = false;
    let missed = false;
    async function drawPicture() {
      if (fetching) {
        missed = true;
        return;
      }
      fetching = true;
      do {
        missed = false;
        const next = new Image();
        next.src = address(shown.index);
        await next.decode().then(() => { image.src = next.src; }, () => {});
      } while (missed);
      fetching = false;
      for (let step = 1; step <= AHEAD; step += 1) {
        for (const index of [shown.index - step, shown.index + step]) {
          if (index >= 0 && index < slices) {
            new Image().src = address(index);
          }
        }
      }
    }

    function drawHeat() {
      const drawn = JSON.parse(document.getElementById("heat-maps").dataset.slices);
      heat.hidden = !drawn.includes(shown.index);
      if (!heat.hidden) {
        heat.src = `${viewer.dataset.scan}/slices/${shown.index}/heatmap.png`;
      }
    }

    function draw() {
      const { index, level, width } = shown;
      if (onGpu) {
        onGpu(shown);
      } else {
        drawPicture();
      }
      drawHeat();
      const probability = probabilities.length ? `, ${Math.round(100 * probabilities[index])} %` : "";
      slider.value = index + 1;
      place.textContent = `${index + 1} of ${slices}${probability}`;
      slider.setAttribute("aria-valuetext", place.textContent);
      image.alt = `Slice ${index + 1} of ${slices}`;
      here?.setAttribute("x", index);
      told.textContent = presets.length > 1 ? `Level ${level}, width ${width} HU` : "";
      for (const preset of presets) {
        preset.setAttribute("aria-pressed", Number(preset.dataset.level) === level && Number(preset.dataset.width) === width);
      }
      for (const link of viewer.querySelectorAll("[data-slice]")) {
        link.toggleAttribute("aria-current", Number(link.dataset.slice) === index);
      }
    }

    function go(index) {
      const reached = clamp(index, 0, slices - 1);
      if (reached !== shown.index) {
        shown.index = reached;
        draw();
      }
    }

    function look(level, width) {
      Object.assign(shown, { level: rounded(level), width: Math.max(rounded(width), 0.01) });
      draw();
    }

    slider.addEventListener("input", () => go(slider.valueAsNumber - 1));

    let turned = 0;
    stage.addEventListener("wheel", (event) => {
      if (event.ctrlKey) {
        return; // The browser zooms the page.
      }
      event.preventDefault();
      turned += event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : Math.sign(event.deltaY) * WHEEL_STEP;
      const steps = Math.trunc(turned / WHEEL_STEP);
      turned -= steps * WHEEL_STEP;
      go(shown.index + clamp(steps, -1, 1));
    }, { passive: false });

    stage.addEventListener("keydown", (event) => {
      const steps = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -slices, End: slices }[event.key];
      if (steps && !event.altKey && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        go(shown.index + steps);
      }
    });

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
        look(dragged.level + (dragged.y - event.clientY) * step, dragged.width + (event.clientX - dragged.x) * step);
      }
    });
    for (const end of ["pointerup", "pointercancel"]) {
      stage.addEventListener(end, () => { dragged = null; });
    }
    stage.addEventListener("contextmenu", (event) => event.preventDefault());

    function goToPointer(event) {
      const box = strip.getBoundingClientRect();
      go(Math.floor((event.clientX - box.left) / box.width * slices));
    }
    strip?.addEventListener("pointerdown", (event) => {
      strip.setPointerCapture(event.pointerId);
      goToPointer(event);
    });
    strip?.addEventListener("pointermove", (event) => {
      if (event.buttons) {
        goToPointer(event);
      }
    });

    viewer.addEventListener("click", (event) => {
      const preset = event.target.closest("[data-level]");
      const link = event.target.closest("[data-slice]");
      if (preset) {
        look(Number(preset.dataset.level), Number(preset.dataset.width));
      } else if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
        event.preventDefault();
        go(Number(link.dataset.slice));
      }
    });

    draw();
    if (viewer.dataset.columns * viewer.dataset.rows * slices <= MOST_VOXELS) {
      loadOnGpu(viewer, stage, shown).then((drawn) => {
        onGpu = drawn;
        draw();
      }, () => {}); // Without it the pictures go on.
    }
    return drawHeat;
  }

  /* Return a function that draws with NiiVue. It only draws: what a person does is heard above, alike with and without WebGL. */
  async function loadOnGpu(viewer, stage, { level, width }) {
    if (!document.createElement("canvas").getContext("webgl2")) {
      throw new Error("There is no WebGL 2.");
    }
    await new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = viewer.dataset.niivue;
      script.onload = resolve;
      script.onerror = reject;
      document.head.append(script);
    });
    const { Niivue, SLICE_TYPE } = window.niivue;
    const place = document.createElement("div");
    const canvas = document.createElement("canvas");
    place.className = "gpu";
    place.hidden = true;
    place.append(canvas);
    stage.querySelector("[data-part=heat]").before(place);
    const drawing = new Niivue({
      interactive: false, dragAndDropEnabled: false, sliceType: SLICE_TYPE.AXIAL, isRadiologicalConvention: true,
      crosshairWidth: 0, isOrientationTextVisible: false, isColorbar: false, loadingText: "", logLevel: "error",
    });
    // It writes nothing here, but fetches its letters and a gloss for surfaces all the same, from data: addresses that our content policy forbids.
    drawing.loadFontTexture = drawing.loadMatCapTexture = async () => null;
    await drawing.attachToCanvas(canvas, false);
    await drawing.loadVolumes([{ url: `${viewer.dataset.scan}/volume`, name: "series.nii.gz", cal_min: level - width / 2, cal_max: level + width / 2 }]);
    const [volume] = drawing.volumes;
    place.hidden = false;
    return (shown) => {
      const low = shown.level - shown.width / 2;
      const high = shown.level + shown.width / 2;
      if (volume.cal_min !== low || volume.cal_max !== high) {
        Object.assign(volume, { cal_min: low, cal_max: high });
        drawing.updateGLVolume();
      }
      drawing.scene.crosshairPos = drawing.vox2frac([0, 0, shown.index]);
      drawing.drawScene();
    };
  }

  function start() {
    const viewer = document.getElementById("viewer");
    if (!viewer) {
      return;
    }
    if (viewers.has(viewer)) {
      viewers.get(viewer)(); // The page around it is new: heat maps are drawn by now.
    } else {
      viewers.set(viewer, open(viewer));
    }
  }

  start();
  document.addEventListener("htmx:afterSettle", start);
})();
