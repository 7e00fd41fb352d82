/** An output of a notebook: data comes from Python in messages, and the edit on the bench goes back. */
import type { Host } from "./host";
import { follow } from "./routes";

type Answer = { key: string; error?: string };
type Heard = (answer: Answer, buffers: DataView[]) => void;
/** What of anywidget's model is used. */
export type Model = {
  send: (content: unknown, callbacks?: unknown, buffers?: ArrayBufferView[]) => void;
  on: (event: "msg:custom", call: Heard) => void;
  off: (event: "msg:custom", call: Heard) => void;
};
/** What `salve_plugin/report/widget.py` gives, and what it calls when the output is cleared. */
export type Widget = { model: Model; el: HTMLElement; css: string; dispose?: () => void };

type Waiting = { resolve: (data: DataView) => void; reject: (error: Error) => void };

/** Pieces of the data by messages; other views of the same widget hear the answers, too. */
export function messages(model: Model): { load: Host["load"]; stop: () => void } {
  const waiting = new Map<string, Waiting>();
  const heard: Heard = ({ key, error }, [data]) => {
    const asked = waiting.get(key);
    if (!asked) return;
    waiting.delete(key);
    if (error !== undefined) asked.reject(new Error(error));
    else asked.resolve(data);
  };
  model.on("msg:custom", heard);
  return {
    load: async (key) => JSON.parse(new TextDecoder().decode(await new Promise<DataView>((resolve, reject) => {
      waiting.set(key, { resolve, reject });
      model.send({ load: key });
    }))),
    stop: () => model.off("msg:custom", heard),
  };
}

export function inNotebook(widget: Widget, stopped: () => void): Host {
  const { model, el, css } = widget;
  const box = document.createElement("div");
  // The notebook's own keys (twice d deletes a cell) are not meant while somebody types in here.
  box.dataset.lmSuppressShortcuts = "";
  const shadow = box.attachShadow({ mode: "open" }); // so that neither style sheet reaches the other
  const style = document.createElement("style");
  style.textContent = css;
  const place = document.createElement("div");
  shadow.append(style, place);
  el.append(box);
  // JupyterLab takes "Enter" from every field in a cell, so that it would never be entered.
  place.addEventListener("beforeinput", (event) => event.stopPropagation());
  // An address of the atlas is none of the notebook.
  place.addEventListener("click", (event) => {
    const hash = (event.target as Element).closest('a[href^="#/"]')?.getAttribute("href");
    if (!hash) return;
    event.preventDefault();
    follow(hash);
  });
  const { load, stop } = messages(model);
  widget.dispose = () => {
    stopped();
    stop();
    box.remove();
  };
  return {
    place, scroller: box, load, go: follow,
    edited: (recipe) => model.send({ edited: recipe !== null }, undefined, recipe ? [recipe] : []),
  };
}
