import { useEffect, useState } from "preact/hooks";

export type Later<T> = { value: T | null; error: string };

/** What a promise gives, null until then. */
export function useLater<T>(make: () => Promise<T>, keys: unknown[]): Later<T> {
  const [state, setState] = useState<Later<T> & { keys: unknown[] }>({ value: null, error: "", keys });
  useEffect(() => {
    let current = true;
    make().then(
      (value) => current && setState({ value, error: "", keys }),
      (error: Error) => current && setState({ value: null, error: error.message, keys }),
    );
    return () => {
      current = false;
    };
  }, keys);
  const same = keys.every((key, at) => key === state.keys[at]);
  return same ? state : { value: null, error: "" };
}

/** Calls after the next painting, when the page has nothing else to do, or after so many milliseconds. */
export function whenIdle(call: () => void, options: IdleRequestOptions = {}): () => void {
  let over = false;
  const now = () => over || call();
  requestAnimationFrame(() => {
    if ("requestIdleCallback" in globalThis) requestIdleCallback(now, options);
    else setTimeout(now, 50);
  });
  return () => (over = true);
}

/** Whether what is ready has been painted: then there is time for what is not in sight. */
export function usePainted(ready: boolean): boolean {
  const [painted, setPainted] = useState(false);
  useEffect(() => (ready ? whenIdle(() => setPainted(true), { timeout: 300 }) : undefined), [ready]);
  return painted;
}
