/** Chosen things that can be taken away, and texts that can be copied. */
import { useState } from "preact/hooks";

export function Picked({ values, named, remove }: { values: number[]; named: (value: number) => string; remove: (value: number) => void }) {
  return (
    <ul class="chips">
      {values.map((value) => (
        <li key={value}>{named(value)}<button type="button" aria-label={`remove ${named(value)}`} onClick={() => remove(value)}>×</button></li>
      ))}
    </ul>
  );
}

export function Copied({ label, text }: { label: string; text: string }) {
  const [done, setDone] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Where pages from disk get no clipboard.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    setDone("copied");
    setTimeout(() => setDone(""), 1500);
  };
  return (
    <div class="copied">
      <pre tabIndex={0} aria-label={label}>{text}</pre>
      <button type="button" onClick={copy}>Copy {label}</button> <span role="status">{done}</span>
    </div>
  );
}

