// Requests to the server. All addresses are relative, so that the page works below any path of a proxy.

export class Refused extends Error {
  constructor(message, status, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function checked(response) {
  if (response.ok) return response;
  if (response.status === 401) location.assign("login");
  let detail = `${response.status} ${response.statusText}`;
  try {
    detail = (await response.json()).detail ?? detail;
  } catch {
    // a proxy answered in its own words
  }
  throw new Refused(String(detail), response.status, Number(response.headers.get("Retry-After")) || 1);
}

export async function getJson(path) {
  return (await checked(await fetch(path))).json();
}

export async function getBlob(path) {
  return (await checked(await fetch(path))).blob();
}

// XMLHttpRequest tells how much of a file is sent; fetch does not.
export function upload(file, name, onSent) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `page/images?name=${encodeURIComponent(name)}`);
    request.responseType = "json";
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => onSent(event.loaded, event.total);
    request.onerror = async () => {
      const readable = await file.slice(0, 1).arrayBuffer().then(() => true, () => false);
      const problem = readable ? "The server cannot be reached." : "It cannot be read: it is a folder, or was moved or changed.";
      reject(new Refused(problem, 0));
    };
    request.onload = () => {
      if (request.status === 401) location.assign("login");
      if (request.status === 200) return resolve(request.response.images);
      const detail = request.response?.detail ?? `${request.status} ${request.statusText}`;
      reject(new Refused(detail, request.status, Number(request.getResponseHeader("Retry-After")) || 1));
    };
    request.send(file);
  });
}

export function remove(id) {
  return fetch(`page/images/${id}`, { method: "DELETE" }).catch(() => {});
}
