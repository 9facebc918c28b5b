// Browsers start no worker for a page that is opened from a disk. There the script of the search runs in a hidden frame,
// which takes messages and answers as a worker does.
if (location.protocol === 'file:') {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement('iframe');
      this.frame.hidden = true;
      this.ready = new Promise((done) => (this.frame.onload = done)).then(() => {
        const inside = this.frame.contentWindow;
        inside.postMessage = (data) => this.dispatchEvent(new MessageEvent('message', { data }));
        inside.importScripts = async (...urls) => {
          for (const each of urls) await this.load(each);
        };
        return this.load(url);
      });
      document.body.append(this.frame);
    }

    load(url) {
      return new Promise((done, failed) => {
        const script = this.frame.contentDocument.createElement('script');
        script.src = new URL(url, location).href;
        script.onload = done;
        script.onerror = failed;
        this.frame.contentDocument.body.append(script);
      });
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent('message', { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
