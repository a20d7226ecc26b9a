/* Draws a scan: the slice, its heat map, and what the controls say. Pictures show the slices of a series at once; where there is
   WebGL 2, NiiVue takes over when it has loaded all of them. What a person does is heard in viewer.js, alike with and without WebGL. */

const PREFETCHED = 2; // Pictures on each side that are fetched before they are asked for.
const MOST_VOXELS = 2 ** 27; // 512 slices of 512 x 512, 256 MB: more is not asked of a browser.

export class Drawing {
  /* `viewer` is the element of scans/_viewer.html. What is shown is { index, level, width }: a slice, counted from 0, and a window.
     A single slice has its heat map drawn and nothing else: its picture does not change. */
  constructor(viewer) {
    const part = (name) => viewer.querySelector(`[data-part=${name}]`);
    this.viewer = viewer;
    this.stage = part("stage");
    this.image = part("image");
    this.heat = part("heat"); // None where the scan has no heat map and will have none.
    this.heatOn = part("heat-on");
    this.noHeat = part("no-heat");
    this.slider = part("slider");
    this.place = part("place");
    this.windowText = part("window");
    this.presets = [...viewer.querySelectorAll("[data-level]")];
    this.isSeries = this.slider !== null;
    this.slices = this.isSeries ? Number(this.slider.max) : 1;
    this.probabilities = this.isSeries ? JSON.parse(viewer.dataset.probabilities) : [];
    this.shown = { index: 0 };
    this.drawOnGpu = null; // A function of what is shown, once NiiVue has the series.
    this.isFetching = false;
    this.isStale = false; // Something else was asked for while a picture was being fetched.
    this.slider?.style.setProperty("--slice", `${100 / this.slices}%`); // The thumb is as wide as a slice's bar.
  }

  draw(shown) {
    this.shown = shown;
    if (this.drawOnGpu) {
      this.drawOnGpu(shown);
    } else {
      this.drawPicture();
    }
    this.drawHeatMap();
    this.drawControls();
  }

  // One picture is fetched at a time; what was passed by meanwhile is left out.
  async drawPicture() {
    if (this.isFetching) {
      this.isStale = true;
      return;
    }
    this.isFetching = true;
    do {
      this.isStale = false;
      const next = new Image();
      next.src = this.pictureUrl(this.shown.index);
      await next.decode().then(() => { this.image.src = next.src; }, () => {});
    } while (this.isStale);
    this.isFetching = false;
    for (let step = 1; step <= PREFETCHED; step += 1) {
      for (const index of [this.shown.index - step, this.shown.index + step]) {
        if (index >= 0 && index < this.slices) {
          new Image().src = this.pictureUrl(index);
        }
      }
    }
  }

  pictureUrl(index) {
    return `${this.viewer.dataset.scan}/slices/${index}.png?level=${this.shown.level}&width=${this.shown.width}`;
  }

  /* Draw the heat map of the slice that is shown, if it has one by now; whether it is seen is the checkbox's (hemoscan.css). */
  drawHeatMap() {
    if (!this.heat) {
      return;
    }
    const drawn = JSON.parse(document.getElementById("heat-maps").dataset.slices);
    const { index } = this.shown;
    this.heatOn.disabled = drawn.length === 0;
    this.heat.hidden = !drawn.includes(index);
    this.noHeat.hidden = !this.heat.hidden || !this.heatOn.checked;
    if (!this.heat.hidden) {
      this.heat.src = `${this.viewer.dataset.scan}${this.isSeries ? `/slices/${index}` : ""}/heatmap.png`;
    }
  }

  drawControls() {
    const { index, level, width } = this.shown;
    const probability = this.probabilities.length ? `, ${Math.round(100 * this.probabilities[index])} %` : "";
    this.slider.value = index + 1;
    this.place.textContent = `${index + 1} of ${this.slices}${probability}`;
    this.slider.setAttribute("aria-valuetext", this.place.textContent);
    this.image.alt = `Slice ${index + 1} of ${this.slices}`;
    this.windowText.textContent = this.presets.length > 1 ? `Level ${level}, width ${width} HU` : "";
    for (const preset of this.presets) {
      preset.setAttribute("aria-pressed", Number(preset.dataset.level) === level && Number(preset.dataset.width) === width);
    }
    for (const link of this.viewer.querySelectorAll("[data-slice]")) {
      link.toggleAttribute("aria-current", Number(link.dataset.slice) === index);
    }
  }

  /* Draw with NiiVue from when it has loaded the series; where that fails, the pictures go on. */
  async moveToGpu(shown) {
    if (this.viewer.dataset.columns * this.viewer.dataset.rows * this.slices > MOST_VOXELS) {
      return;
    }
    try {
      this.drawOnGpu = await loadNiivue(this.viewer, this.stage, shown);
    } catch {
      return;
    }
    this.draw(this.shown);
  }
}

/* Return a function that draws what is shown with NiiVue. It only draws: `interactive` is off. */
async function loadNiivue(viewer, stage, { level, width }) {
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
  const niivue = new Niivue({
    interactive: false, dragAndDropEnabled: false, sliceType: SLICE_TYPE.AXIAL, isRadiologicalConvention: true,
    crosshairWidth: 0, isOrientationTextVisible: false, isColorbar: false, loadingText: "", logLevel: "error",
  });
  // It writes nothing here, but fetches its letters and a gloss for surfaces all the same, from data: addresses that our content policy forbids.
  niivue.loadFontTexture = niivue.loadMatCapTexture = async () => null;
  await niivue.attachToCanvas(canvas, false);
  await niivue.loadVolumes([{ url: `${viewer.dataset.scan}/volume`, name: "series.nii.gz", cal_min: level - width / 2, cal_max: level + width / 2 }]);
  const [volume] = niivue.volumes;
  place.hidden = false;
  return (shown) => {
    const low = shown.level - shown.width / 2;
    const high = shown.level + shown.width / 2;
    if (volume.cal_min !== low || volume.cal_max !== high) {
      Object.assign(volume, { cal_min: low, cal_max: high });
      niivue.updateGLVolume();
    }
    niivue.scene.crosshairPos = niivue.vox2frac([0, 0, shown.index]);
    niivue.drawScene();
  };
}
