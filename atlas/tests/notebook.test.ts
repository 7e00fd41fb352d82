import { describe, expect, it } from "vitest";
import { load } from "../src/data";
import { standIn } from "../src/host";
import { messages, type Model } from "../src/notebook";

type Heard = Parameters<Model["on"]>[1];

/** A model that keeps what is sent, and says what it is told to. */
function spoken() {
  const heard = new Set<Heard>();
  const sent: unknown[] = [];
  const model: Model = {
    send: (content) => sent.push(content),
    on: (_, call) => heard.add(call),
    off: (_, call) => heard.delete(call),
  };
  const say = (key: string, json: string | null, error?: string) => {
    const data = json === null ? [] : [new DataView(new TextEncoder().encode(json).buffer)];
    for (const call of heard) call({ key, error }, data);
  };
  return { model, sent, say, heard };
}

describe("messages", () => {
  it("answer who asked, in any order", async () => {
    const { model, sent, say } = spoken();
    const { load } = messages(model);
    const [first, second] = [load("index"), load("bench/top")];
    expect(sent).toEqual([{ load: "index" }, { load: "bench/top" }]);
    say("bench/top", "[1]");
    say("index", '{"title":"\\u003c/script\\u003e “é”"}');
    expect(await first).toEqual({ title: "</script> “é”" });
    expect(await second).toEqual([1]);
  });

  it("leave alone who asked for something else", async () => {
    const { model, say } = spoken();
    const [one, other] = [messages(model), messages(model)];
    const [mine, theirs] = [one.load("a"), other.load("b")];
    say("a", "1");
    say("b", "2");
    say("b", "3");
    expect([await mine, await theirs]).toEqual([1, 2]);
  });

  it("say what is missing, and what is no JSON", async () => {
    const { model, say } = spoken();
    const { load } = messages(model);
    const missing = load("latents/0");
    say("latents/0", null, "no such data");
    await expect(missing).rejects.toThrow("no such data");
    const broken = load("latents/1");
    say("latents/1", "alert(1)");
    await expect(broken).rejects.toThrow(SyntaxError);
  });

  it("are not heard any more once the output is cleared", () => {
    const { model, heard } = spoken();
    const { stop } = messages(model);
    expect(heard.size).toBe(1);
    stop();
    expect(heard.size).toBe(0);
  });
});

describe("pieces", () => {
  it("are fetched once, unpacked, and again where that failed", async () => {
    const asked: string[] = [];
    let fails = true;
    standIn({
      place: null!, scroller: null!, go: () => undefined,
      load: (key) => {
        asked.push(key);
        return fails ? Promise.reject(new Error("gone")) : Promise.resolve({ x: { type: "i8", data: "Af8=" } });
      },
    });
    await expect(load("a")).rejects.toThrow("gone");
    fails = false;
    const [one, two] = await Promise.all([load("a"), load("a")]);
    expect(one).toBe(two);
    expect(one).toEqual({ x: Int8Array.of(1, -1) });
    expect(asked).toEqual(["a", "a"]);
  });
});
