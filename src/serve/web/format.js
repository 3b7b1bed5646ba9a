// Numbers as people read them.

export function percent(share) {
  if (share === 0 || share === 1) return `${share * 100} %`;
  return `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;
}

export function bytes(count) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    ++unit;
  }
  return `${count < 10 && unit ? count.toFixed(1) : count.toFixed(0)} ${units[unit]}`;
}

export function whole(count) {
  return Math.round(count).toLocaleString("en");
}

export function plural(count, word) {
  return `${whole(count)} ${word}${count === 1 ? "" : "s"}`;
}

/** Decoded tokens per second, as the server timed them: the first one is prefill's. */
export function rate(usage) {
  const tokens = usage.completion_tokens - 1, seconds = usage.polar.decode_seconds;
  if (tokens < 1 || seconds <= 0) return "– tokens/s";
  return `${(tokens / seconds).toFixed(tokens / seconds < 100 ? 1 : 0)} tokens/s`;
}
