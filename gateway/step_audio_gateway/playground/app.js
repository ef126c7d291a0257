import { listModels, streamChat } from "./api.js";
import { Composer } from "./composer.js";
import { Conversation, countRecordings, userMessage } from "./conversation.js";
import { Dialogue } from "./dialogue.js";
import { DialogueBar } from "./dialogue-bar.js";
import { ExchangeView } from "./exchange-view.js";
import { itemsOf } from "./realtime-items.js";
import { Reply } from "./reply.js";
import { Settings } from "./settings.js";
import { Speech } from "./speech.js";
import { Talk } from "./talk.js";
import { Welcome } from "./welcome.js";

const CHECK_EVERY = 15_000; // ms between looks at a server that does not answer
const DRAWER = matchMedia("(max-width: 1079px)"); // as in style.css: below, the settings are a drawer
const NEAR_END = 80; // CSS pixels: who has scrolled further up wants to stay there

const find = (selector) => document.querySelector(selector);
const thread = find("#thread");
const scroller = find("#scroller");
const settings = new Settings(find("#settings-form"));
const talk = new Talk(find(".talk"));
const composer = new Composer(find("#composer"), talk, settings);
const conversation = new Conversation();
const speech = new Speech();
const dialogue = new Dialogue();
const welcome = new Welcome(find(".welcome"), (text) => composer.suggest(text));
let running = null; // the AbortController of the reply that is streaming
let views = []; // {exchange, view}, oldest first

/** Sends `exchange` and draws the reply into `view` as it arrives. */
async function run(exchange, view) {
  const controller = new AbortController();
  const { reply } = exchange;
  let trouble;
  running = controller;
  composer.busy = true;
  speech.stop();
  announce("Waiting for the model");
  try {
    const body = { ...settings.body(), messages: conversation.messagesFor(exchange, settings.instructions) };
    reply.paced = "mind_paced_speaking" in body;
    reply.recordingsBefore = countRecordings(body.messages) - exchange.clips.length;
    let state = "";
    for await (const chunk of streamChat(body, settings.key, controller.signal)) {
      if (controller.signal.aborted) break;
      reply.push(chunk);
      if (reply.state !== state && reply.state === "thinking") announce("Thinking");
      state = reply.state;
      if (settings.readAloud) speech.follow(reply.content, { inPieces: reply.paced });
      keepInSight(() => view.update());
    }
    reply.end(controller.signal.aborted ? "stopped" : "done");
    if (settings.readAloud && reply.state === "done") speech.follow(reply.content, { complete: true });
  } catch (error) {
    reply.end(controller.signal.aborted ? "stopped" : "failed");
    if (reply.state === "failed") trouble = error.message;
    if (error.status === 401) openSettings(find("[name=key]"));
  }
  if (running === controller) {
    running = null;
    composer.busy = false;
  }
  keepInSight(() => view.end(trouble));
  if (!trouble) announce(reply.state === "stopped" ? "Stopped" : `Answer: ${reply.content}`);
  if (trouble) checkServer();
}

function ask({ clips = [], text = "", messages }) {
  const exchange = { clips, text, messages, reply: new Reply() };
  run(exchange, show(exchange));
}

/** Puts `exchange` at the end of the page, and of the conversation; its view. */
function show(exchange) {
  const view = new ExchangeView(exchange, {
    again() {
      if (running || !conversation.isLast(exchange)) return;
      exchange.reply = new Reply();
      view.restart(exchange.reply);
      run(exchange, view);
    },
    results(list) {
      if (running || !conversation.isLast(exchange) || dialogue.results(exchange, list)) return;
      ask({ messages: list.map(({ id, text: content }) => ({ role: "tool", tool_call_id: id, content })) });
    },
  });
  views.at(-1)?.view.settle();
  views.push({ exchange, view });
  conversation.add(exchange);
  document.body.dataset.empty = "false";
  thread.append(view.node);
  scroller.scrollTop = scroller.scrollHeight;
  return view;
}

function viewOf(exchange) {
  return views.find((one) => one.exchange === exchange).view;
}

async function converse() {
  if (dialogue.state !== "off") return dialogue.end();
  stop();
  try {
    await dialogue.start(settings.session(), settings.key, itemsOf(conversation.exchanges));
  } catch (error) {
    toast(error.message);
    if (error.status === 401) openSettings(find("[name=key]"));
  }
}

function stop() {
  speech.stop();
  running?.abort();
}

function startOver() {
  dialogue.end();
  stop();
  for (const { exchange } of views) exchange.clips.forEach((clip) => clip.discard());
  views = [];
  conversation.clear();
  thread.replaceChildren();
  document.body.dataset.empty = "true";
}

/** Runs `change`, then follows the end of the page if that was where the reader was. */
function keepInSight(change) {
  const follows = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_END;
  change();
  if (follows) requestAnimationFrame(() => (scroller.scrollTop = scroller.scrollHeight));
}

/** For screen readers. */
function announce(text) {
  find("#status").textContent = text;
}

let toastTimer;

function toast(message) {
  const box = find("#toast");
  box.textContent = message;
  box.dataset.shown = "true";
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (box.dataset.shown = "false"), 6000);
}

/** As a drawer, the settings lie over the page, which the keyboard must not reach behind them. */
function drawer(open) {
  document.body.dataset.settings = open ? "open" : "closed";
  find("#settings-toggle").setAttribute("aria-expanded", String(open));
  for (const behind of document.querySelectorAll("main, header")) behind.inert = open;
  if (open) find("#settings").setAttribute("role", "dialog");
  else find("#settings").removeAttribute("role");
}

function openSettings(field) {
  if (DRAWER.matches) drawer(true);
  (field ?? find("#settings-close")).focus();
}

/** Whether there was a drawer to close. */
function closeSettings() {
  if (document.body.dataset.settings !== "open") return false;
  drawer(false);
  find("#settings-toggle").focus();
  return true;
}

let checkTimer;

async function checkServer() {
  clearTimeout(checkTimer);
  const server = find("#server");
  try {
    const models = await listModels(settings.key);
    settings.offer(models);
    welcome.offer(models[0]?.suggestions);
    server.dataset.state = "ready";
    server.lastElementChild.textContent = models[0]?.id ?? "no model";
    server.title = "";
  } catch (error) {
    server.dataset.state = error.status === 401 ? "locked" : "away";
    server.lastElementChild.textContent = error.status === 401 ? "needs an API key" : "server not reachable";
    server.title = error.message;
    if (error.status !== 401) checkTimer = setTimeout(checkServer, CHECK_EVERY);
  }
}

function listenForFiles() {
  let depth = 0; // enter and leave also fire for every element inside
  const over = (change) => (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    depth = Math.max(0, depth + change);
    document.body.dataset.drop = String(depth > 0);
  };
  document.addEventListener("dragenter", over(1));
  document.addEventListener("dragleave", over(-1));
  document.addEventListener("dragover", over(0));
  document.addEventListener("drop", (event) => {
    over(-depth)(event);
    if (event.dataTransfer?.files.length) composer.addFiles([...event.dataTransfer.files]);
  });
}

composer.addEventListener("send", async ({ detail: { clips, text } }) => {
  try {
    ask({ clips, text, messages: [await userMessage(clips, text)] });
  } catch (error) {
    toast(error.message);
  }
});
composer.addEventListener("stop", stop);
composer.addEventListener("recordstart", () => speech.stop()); // or the microphone hears it
composer.addEventListener("trouble", ({ detail }) => toast(detail));
composer.addEventListener("status", ({ detail }) => announce(detail));
new DialogueBar(find("#composer"), dialogue, converse, announce);
dialogue.addEventListener("turn", ({ detail }) => show(detail));
dialogue.addEventListener("change", ({ detail }) => keepInSight(() => viewOf(detail).update()));
dialogue.addEventListener("over", ({ detail: { exchange, trouble } }) => {
  keepInSight(() => viewOf(exchange).end(trouble));
  if (exchange.reply.state === "done") announce(`Answer: ${exchange.reply.content}`);
});
dialogue.addEventListener("trouble", ({ detail }) => toast(detail));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (talk.state !== "idle") talk.cancel();
  else if (dialogue.state !== "off") dialogue.end();
  else if (!closeSettings()) stop();
});
find("#start-over").addEventListener("click", startOver);
find("#settings-toggle").addEventListener("click", () => openSettings());
find("#settings-close").addEventListener("click", closeSettings);
find("#scrim").addEventListener("click", closeSettings);
DRAWER.addEventListener("change", () => drawer(false));
find("[name=key]").addEventListener("change", checkServer);
if (!Speech.available) find("[name=aloud]").closest("label").hidden = true;
listenForFiles();
checkServer();
