// The binary series answer (docs/formats.md, "Series answer, version 1") into typed arrays: views of the one buffer, nothing is parsed.
(() => {
  const Encore = (window.Encore = window.Encore || {});
  const TYPES = { f64: Float64Array, f32: Float32Array, i64: BigInt64Array, u32: Uint32Array, i32: Int32Array };

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
      for (const [name, place] of Object.entries(one)) {
        if (place?.type in TYPES && "at" in place) one[name] = new TYPES[place.type](buffer, base + place.at, place.length);
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
