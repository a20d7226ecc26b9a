/* The upload bar on the worklist: files, folders and ZIPs are dropped anywhere on the page, sorted into batches ("parcels") of files that may
   belong together, and sent one batch per request. The page works without this file: then there is the form. */
"use strict";

const AT_ONCE = 3;
const TRIES = 20;
const WAIT_S = 5;
const MOST_WAIT_S = 60;
const MOST_LINKS = 10;
const FEWEST_NUMBERED = 3;  // Same as in webapp/intake/series.py, which decides.
const PICTURE = /\.(png|jpe?g)$/i;
const ALONE = /\.(zip|nii|nii\.gz)$/i;
const OF_SYSTEM = /(^|\/)(\.[^/]*|__MACOSX\/.*|thumbs\.db|desktop\.ini|dicomdir)$/i;
const BUSY = [429, 503];
const SENTENCES = {
  403: "You do not have permission to do this.",
  413: "The files are too large.",
  507: "The server has too little space for these files.",
};

const bar = document.getElementById("submit");
const part = (name) => bar.querySelector(`[data-part=${name}]`);
const form = bar.querySelector("form");
const mostFiles = Number(bar.dataset.maxFiles);
const mostBytes = bar.dataset.maxMb * 1024 * 1024;
const serverMs = Date.parse(bar.dataset.now); // The server's clock when it rendered the page, and this machine's when the page was loaded.
const openedMs = Date.now();
const plural = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

const byName = new Intl.Collator("en", { numeric: true });

let staged = [];  // {file, path}: not sent yet.
let queue = [];   // Batches that are waiting.
let parcels = []; // All batches of this drop.
let sending = 0;

// --- the dropped or chosen files

async function entriesOf(entry, entered) {
  if (entered.length > mostFiles) {
    return;  // The batch is refused, so it does not matter how many more there are.
  }
  if (entry.isFile) {
    const file = await new Promise((resolve) => { entry.file(resolve, () => resolve(null)); });
    entered.push({ file, path: entry.fullPath.replace(/^\//, "") });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve) => { reader.readEntries(resolve, () => resolve([])); });
    if (!some.length) {
      return;
    }
    for (const each of some) {
      await entriesOf(each, entered);
    }
  }
}

async function dropped(transfer) {
  // Both lists become empty as soon as this function awaits something.
  const entries = Array.from(transfer.items, (item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const entered = entries.length ? [] : Array.from(transfer.files, (file) => ({ file, path: file.name }));
  for (const entry of entries) {
    await entriesOf(entry, entered);
  }
  return entered;
}

function stage(entered) {
  const known = new Set(staged.map((each) => each.path + each.file.size));
  const more = entered.filter((each) => each.file && !known.has(each.path + each.file.size));
  const total = staged.length + more.length;
  if (total > mostFiles) {
    say(`More than ${plural(mostFiles, "file")} cannot be sent at once, so nothing was added. Please send them folder by folder.`, true);
    return;
  }
  if (!staged.length && parcels.length) {
    form.reset();  // STAT and title applied to the previous upload.
  }
  staged = staged.concat(more).sort((a, b) => byName.compare(a.path, b.path));
  say(entered.length ? "" : "No files found.", !entered.length);
  showStaged();
  if (staged.length) {
    part("send").focus();
  }
}

function say(sentence, isError = false) {
  part("message").textContent = sentence;
  part("message").hidden = !sentence;
  part("message").classList.toggle("error", isError);
}

// --- which files are sent together

const folderOf = (path) => path.includes("/") ? path.slice(0, path.lastIndexOf("/")) : "";
const topOf = (path) => path.includes("/") ? path.slice(0, path.indexOf("/")) : "";
const nameIn = (path) => path.slice(path.lastIndexOf("/") + 1);
/* The key that the slices of one scan share: folder, and name except for its last number, unless that counts people. The server, which
   decides, compares their sizes too. */
const lookOf = (path) => {
  const [, start, number, end] = nameIn(path).toLowerCase().match(/^([^]*?)(\d*)(\D*)$/);
  const countsPeople = bar.dataset.counted.split(" ").some((word) => start.replace(/[\s_.#-]+$/, "").endsWith(word));
  return number && !countsPeople ? `${folderOf(path)}/${start}#${end}` : path;
};
const sizeOf = (bytes) => bytes < 1048576 ? `${Math.ceil(bytes / 1024)} KB` : `${(bytes / 1048576).toFixed(1)} MB`;
const bytesOf = (files) => files.reduce((sum, each) => sum + each.file.size, 0);

function grouped(files, keyOf) {
  const groups = new Map();
  files.forEach((each) => {
    const key = keyOf(each.path);
    groups.set(key, [...(groups.get(key) || []), each]);
  });
  return Array.from(groups.values());
}

function refusalOf({ file, path }) {
  if (OF_SYSTEM.test(path)) {
    return "This is a system file or disc directory, not an image.";
  }
  if (!file.size) {
    return "The file is empty.";
  }
  return file.size > mostBytes ? `The file is larger than ${bar.dataset.maxMb} MB.` : "";
}

/* Return {files, kind} for each request, in the order of the files. The server decides which files of a request are one scan, and which scans
   are one study; here, files that may belong together are only kept together. Images in a folder with other files are sent with those: they
   may belong to the viewer on an exported disc, and the server leaves such images out. */
function sorted(files, pictures, isOneStudy) {
  if (isOneStudy) {
    return [{ files, kind: "files of one examination" }];
  }
  const units = [];
  const alone = files.filter(({ path }) => ALONE.test(path));
  alone.forEach((each) => units.push({ files: [each], kind: "file" }));
  const rest = files.filter(({ path }) => !ALONE.test(path));
  const mixed = new Set(rest.filter(({ path }) => !PICTURE.test(path)).map(({ path }) => folderOf(path)));
  const isLoosePicture = ({ path }) => PICTURE.test(path) && !(mixed.has(folderOf(path)) && folderOf(path));
  const byLook = pictures === "apart" ? (path) => path : pictures === "together" ? folderOf : lookOf;
  grouped(rest.filter(isLoosePicture), byLook).forEach((group) => {
    const isSeries = pictures === "together" ? group.length > 1 : group.length >= FEWEST_NUMBERED;
    if (isSeries) {
      units.push({ files: group, kind: "pictures" });
    } else {
      group.forEach((each) => units.push({ files: [each], kind: "picture" }));
    }
  });
  grouped(rest.filter((each) => !isLoosePicture(each)), topOf).forEach((tree) => {
    const parts = bytesOf(tree) > mostBytes ? grouped(tree, folderOf) : [tree];
    parts.forEach((group) => units.push({ files: group, kind: group.length === 1 ? "file" : "files" }));
  });
  return units.sort((a, b) => byName.compare(a.files[0].path, b.files[0].path));
}

function planned() {
  const sound = staged.filter((each) => !refusalOf(each));
  return sorted(sound, form.elements.pictures.value, form.elements.studies.value === "one");
}

function showStaged() {
  part("staged").hidden = !staged.length;
  if (!staged.length) {
    return;
  }
  const plan = planned();
  const pictures = staged.filter(({ path }) => PICTURE.test(path)).length;
  part("pictures").hidden = pictures < 2;
  part("summary").textContent = `${plural(staged.length, "file")}, ${sizeOf(bytesOf(staged))}`;
  const lines = plan.filter(({ kind }) => kind === "pictures").map(({ files }) => {
    const folder = folderOf(files[0].path);
    const where = folder ? ` in “${folder}”` : "";
    return form.elements.pictures.value === "together"
      ? `${plural(files.length, "image")}${where} will be one series.`
      : `${plural(files.length, "image")}${where} look like slices of one scan and will be one series if their sizes match.`;
  });
  part("series").replaceChildren(...lines.slice(0, 5).map((line) => element("li", line)));
  if (lines.length > 5) {
    part("series").append(element("li", `And ${plural(lines.length - 5, "more group")} of images.`));
  }
  part("send").textContent = `Submit ${plural(staged.length, "file")}`;
}

// --- sending

function element(name, text = "", className = "") {
  const created = document.createElement(name);
  created.textContent = text;
  created.className = className;
  return created;
}

/* A file and its outcome, in the columns of the list. */
function line(name, path, state, className) {
  const created = element(name, "", className);
  const shown = element("span", path, "name");
  shown.title = path;
  created.append(shown, element("span", state, "state"));
  return created;
}

function nameOf({ files, kind }) {
  if (files.length === 1) {
    return files[0].path;
  }
  let folder = folderOf(files[0].path); // The folder that contains all of them.
  while (folder && !files.every(({ path }) => path.startsWith(`${folder}/`))) {
    folder = folderOf(folder);
  }
  return `${folder ? `${folder} · ` : ""}${files.length.toLocaleString("en")} ${kind}`;
}

function showParcel(parcel) {
  parcel.row = element("li", "", "waiting");
  parcel.state = element("span", "Waiting", "state");
  parcel.meter = element("progress");
  parcel.meter.max = 1;
  parcel.meter.value = 0;
  parcel.meter.setAttribute("aria-label", nameOf(parcel));
  const name = element("span", nameOf(parcel), "name");
  parcel.row.append(name, parcel.meter, parcel.state);
  if (parcel.files.length > 1) {
    const all = element("details");
    all.append(element("summary", "Files"));
    all.addEventListener("toggle", () => showFiles(parcel, all));
    parcel.row.append(all);
  }
  return parcel.row;
}

function showFiles(parcel, all) {
  all.querySelector("ul")?.remove();
  if (!all.open) {
    return;
  }
  const list = element("ul");
  let end = 0;
  parcel.files.forEach((each, place) => {
    end += each.file.size;
    const refused = parcel.refused[place] || (parcel.outcome === "refused" ? parcel.reason : "");
    const state = refused || (parcel.outcome === "accepted" ? "Accepted" : parcel.sent >= end ? "Sent" : "Waiting");
    list.append(line("li", each.path, state, refused ? "refused" : ""));
  });
  all.append(list);
}

function end(parcel, outcome, text) {
  Object.assign(parcel, { outcome, reason: text });
  parcel.row.className = outcome;
  parcel.meter.hidden = true;
  parcel.state.textContent = text;
  if (outcome === "accepted") {
    // It is found by its title in the worklist, which does not show file names.
    parcel.scans.slice(0, MOST_LINKS).forEach((scan) => {
      const link = element("a", scan.title);
      link.href = scan.url;
      parcel.state.append(" ", link);
    });
    if (parcel.scans.length > MOST_LINKS) {
      parcel.state.append(" …");
    }
    const refused = Object.entries(parcel.refused);
    refused.forEach(([place, reason]) => {
      parcel.row.append(line("p", parcel.files[place].path, reason, "refused"));
    });
    // The notes list refused files again, without their names.
    const notes = new Set(refused.length ? [] : parcel.scans.flatMap((scan) => scan.notes));
    notes.forEach((note) => parcel.row.append(element("p", note, "small muted")));
  }
  if (outcome !== "accepted" || Object.keys(parcel.refused).length) {
    part("list").prepend(parcel.row);  // Uploads that need attention come first.
  }
  showTotal();
}

function outcomeOf(parcel, request) {
  if (request.responseURL.includes("/login")) {
    return ["failed", "You are logged out. Log in again in another tab, then try again."];
  }
  let answer = null;
  try {
    answer = JSON.parse(request.responseText);
  } catch {
    answer = null;  // An HTML page: the response of a proxy, or of a server that is stopping.
  }
  if (request.status === 201 && answer) {
    Object.assign(parcel, answer);
    const slices = answer.scans.reduce((sum, scan) => sum + scan.slices, 0);
    return ["accepted", `Accepted: ${plural(answer.scans.length, "scan")}, ${plural(slices, "slice")}.`];
  }
  const sentence = answer?.error || answer?.detail || SENTENCES[request.status];
  return sentence ? ["refused", sentence] : ["failed", `The server returned an error (${request.status}).`];
}

function send(parcel) {
  const data = new FormData(form);
  // These distinguish the scans of one drop, and keep them in order, whichever request finishes first.
  data.set("number", parcel.number);
  data.set("dropped_ms", parcel.droppedMs);
  parcel.files.forEach(({ file, path }) => data.append("file", file, path));
  const request = new XMLHttpRequest();
  parcel.request = request;
  parcel.row.className = "sending";
  parcel.state.textContent = "Sending";
  parcel.refused = {};
  request.upload.addEventListener("progress", (event) => {
    parcel.sent = Math.min(event.loaded, parcel.bytes);
    parcel.meter.value = event.lengthComputable ? event.loaded / event.total : 0;
    parcel.state.textContent = parcel.meter.value < 1 ? `${Math.floor(100 * parcel.meter.value)}%` : "Checking";
    showTotal();
  });
  request.addEventListener("load", () => {
    sending -= 1;
    if (BUSY.includes(request.status) && parcel.tries < TRIES) {
      tryLater(parcel, Number(request.getResponseHeader("Retry-After")) || WAIT_S);
    } else {
      end(parcel, ...outcomeOf(parcel, request));
    }
    next();
  });
  const lost = (sentence) => () => {
    sending -= 1;
    end(parcel, "failed", sentence);
    next();
  };
  request.addEventListener("error", lost("The connection was lost."));
  request.addEventListener("abort", lost("Stopped."));
  request.open("POST", bar.dataset.url);
  request.setRequestHeader("Accept", "application/json");
  request.send(data);
  sending += 1;
}

function tryLater(parcel, seconds) {
  const wait = Math.min(Math.max(seconds, 1), MOST_WAIT_S);
  parcel.tries += 1;
  parcel.sent = 0;
  parcel.meter.value = 0;
  parcel.row.className = "waiting";
  parcel.state.textContent = `The server is busy; trying again in ${wait} s`;
  parcel.timer = setTimeout(() => {
    parcel.timer = 0;
    queue.unshift(parcel);
    next();
  }, wait * 1000);
}

function next() {
  while (sending < AT_ONCE && queue.length) {
    send(queue.shift());
  }
  showTotal();
  if (isOver() && parcels.length) {
    // If everything succeeded, the worklist below shows the rest.
    part("details").open = parcels.some((parcel) => parcel.outcome !== "accepted" || part("list").querySelector("p"));
    document.dispatchEvent(new CustomEvent("submitted"));
  }
}

const isOver = () => !sending && !queue.length && parcels.every((parcel) => !parcel.timer);

function showTotal() {
  const files = parcels.reduce((sum, parcel) => sum + parcel.files.length, 0);
  const bytes = parcels.reduce((sum, parcel) => sum + parcel.bytes, 0);
  const sent = parcels.reduce((sum, parcel) => sum + (parcel.outcome ? parcel.bytes : parcel.sent), 0);
  const count = (outcome) => parcels.filter((parcel) => parcel.outcome === outcome)
    .reduce((sum, parcel) => sum + parcel.files.length - (outcome === "accepted" ? Object.keys(parcel.refused).length : 0), 0);
  const accepted = count("accepted");
  const failed = count("failed");
  const refused = count("refused") + parcels.reduce((sum, parcel) => sum + Object.keys(parcel.outcome === "accepted" ? parcel.refused : {}).length, 0);
  part("meter").value = bytes ? sent / bytes : 1;
  const scans = parcels.reduce((sum, parcel) => sum + parcel.scans.length, 0);
  const counts = [`${accepted.toLocaleString("en")} of ${plural(files, "file")} accepted${scans ? ` as ${plural(scans, "scan")}` : ""}`];
  if (refused) {
    counts.push(`${refused.toLocaleString("en")} refused`);
  }
  if (failed) {
    counts.push(`${failed.toLocaleString("en")} not sent`);
  }
  part("total").textContent = `${counts.join(", ")}.`;
  part("next").textContent = !isOver() ? "Keep this page open until everything is sent."
    : scans ? "You can close this page. Results appear below as they come in." : "";
  part("meter").hidden = isOver();
  part("stop").hidden = isOver();
  part("again").hidden = !isOver() || !failed;
  part("close").hidden = !isOver();
}

function begin() {
  const refused = staged.map((each) => [each, refusalOf(each)]).filter(([, reason]) => reason);
  const plan = planned();
  const droppedMs = Math.floor(serverMs - openedMs + Date.now());
  let before = 1;  // The number of files and folders so far, so that scans are numbered consecutively across requests.
  const fresh = plan.map((one) => {
    const number = plan.length > 1 ? before : 0;
    before += new Set(one.files.map(({ path }) => folderOf(path))).size;
    return {
      ...one,
      bytes: bytesOf(one.files), sent: 0, tries: 0, timer: 0, outcome: "", reason: "", refused: {}, scans: [],
      droppedMs, number,
    };
  });
  const unsent = refused.map(([each, reason]) => ({
    files: [each], kind: "file", bytes: 0, sent: 0, tries: 0, timer: 0, outcome: "", reason: "", refused: {}, scans: [], why: reason,
  }));
  const tooLarge = fresh.filter((parcel) => parcel.bytes > mostBytes);
  parcels = [...unsent, ...fresh];
  part("list").replaceChildren(...parcels.map(showParcel));
  unsent.forEach((parcel) => end(parcel, "refused", parcel.why));
  tooLarge.forEach((parcel) => end(parcel, "refused", `These files are larger than ${bar.dataset.maxMb} MB together. Please send them in smaller batches.`));
  queue = fresh.filter((parcel) => !parcel.outcome);
  staged = [];
  showStaged();
  part("sending").hidden = false;
  part("details").open = true;
  next();
}

function stop() {
  const waiting = [...queue, ...parcels.filter((parcel) => parcel.timer)];
  queue = [];
  waiting.forEach((parcel) => {
    clearTimeout(parcel.timer);
    parcel.timer = 0;
    end(parcel, "failed", "Stopped.");
  });
  parcels.filter((parcel) => !parcel.outcome).forEach((parcel) => parcel.request?.abort());
}

function again() {
  const failed = parcels.filter((parcel) => parcel.outcome === "failed");
  failed.forEach((parcel) => {
    Object.assign(parcel, { outcome: "", reason: "", sent: 0, tries: 0 });
    parcel.meter.hidden = false;
    parcel.row.className = "waiting";
    parcel.state.textContent = "Waiting";
  });
  queue = failed;
  part("details").open = true;
  next();
}

// --- events

const holdsFiles = (event) => Array.from(event.dataTransfer?.types || []).includes("Files");

document.addEventListener("dragover", (event) => {
  if (holdsFiles(event)) {
    event.preventDefault();
    bar.classList.add("dropping");
  }
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) {
    bar.classList.remove("dropping");
  }
});
document.addEventListener("drop", async (event) => {
  if (!holdsFiles(event)) {
    return;
  }
  event.preventDefault();
  bar.classList.remove("dropping");
  bar.scrollIntoView({ block: "nearest" });
  if (!isOver()) {
    say("Please wait until the current files are sent.", true);
    return;
  }
  stage(await dropped(event.dataTransfer));
});

part("folder").hidden = !("webkitdirectory" in part("folder-input"));  // Folders cannot be chosen on phones.
["files", "folder"].forEach((name) => {
  const input = part(`${name}-input`);
  part(name).addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    stage(Array.from(input.files, (file) => ({ file, path: file.webkitRelativePath || file.name })));
    input.value = "";
  });
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (isOver() && staged.length) {
    begin();
  }
});
form.addEventListener("change", showStaged);
part("clear").addEventListener("click", () => { staged = []; say(""); showStaged(); });
part("stop").addEventListener("click", stop);
part("again").addEventListener("click", again);
part("close").addEventListener("click", () => { parcels = []; part("sending").hidden = true; });
window.addEventListener("beforeunload", (event) => {
  if (!isOver()) {
    event.preventDefault();
  }
});
