// The binary series answer (docs/formats.md, "Series answer, version 1") into typed arrays: views of the one buffer, nothing is parsed.
(() => {
  const Encore = (window.Encore = window.Encore || {});
  const TYPES = { f64: Float64Array, i64: BigInt64Array, u32: Uint32Array, i32: Int32Array };
  const ARRAYS = ["x", "y", "min", "max", "mean", "first", "last", "count", "steps"];

  Encore.decodeSeries = (buffer) => {
    const view = new DataView(buffer);
    const magic = String.fromCharCode(...new Uint8Array(buffer, 0, 4));
    if (magic !== "ENCS") throw new Error("This is not a series answer.");
    const version = view.getUint16(4, true);
    if (version > 1) throw new Error(`The server speaks series version ${version}; reload the page.`);
    const length = view.getUint32(8, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 16, length)));
    const base = 16 + length;
    for (const one of header.series) {
      for (const name of ARRAYS) {
        const place = one[name];
        if (place && typeof place === "object") one[name] = new TYPES[place.type](buffer, base + place.at, place.length);
      }
    }
    return header;
  };

  Encore.fetchSeries = async (query, signal) => {
    const answer = await Encore.fetch("/api/v1/series", {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/vnd.encore.series" },
      body: JSON.stringify(query),
      signal,
    });
    return Encore.decodeSeries(await answer.arrayBuffer());
  };
})();
