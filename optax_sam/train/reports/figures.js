/* Turns the data of a figure into the traces and the layout that Plotly draws.

   A figure has `curves` (over the steps, with a choice of x axes and a range
   over seeds; or over an x of their own), `points` (value and cost), `rows` (a
   value with its range for each method), or a `plane` (the loss along two
   directions). A colour is the name of a CSS variable. */
const figuresOf = (page, options, hidden) => {
  'use strict';

  const X_LABELS = {
    steps: 'step',
    gradients: 'gradients, in units of a step of the base optimizer',
    seconds: 'seconds of training',
  };
  const HEIGHT = 340;
  const MARGIN = {l: 58, r: 16, t: 12, b: 46};
  const SPREAD = 8; // an axis is logarithmic if its values span this factor
  const LABEL_GAP = 14; // pixels between the labels of two curves

  // Colours

  const probe = document.body.appendChild(document.createElement('span'));
  probe.hidden = true;

  function rgb(variable) {
    // Resolves light-dark(), which a custom property does not.
    probe.style.color = `var(${variable})`;
    return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3);
  }

  function color(variable, opacity = 1) {
    return `rgba(${rgb(variable).join(',')},${opacity})`;
  }

  function mixed(variable, other, fraction) {
    const [a, b] = [rgb(variable), rgb(other)];
    const mix = a.map((value, i) => value * (1 - fraction) + b[i] * fraction);
    return `rgb(${mix.map(Math.round).join(',')})`;
  }

  // Layout

  function axis(given = {}) {
    const title = {standoff: 8, font: {size: 12}, ...given.title};
    const base = {
      color: color('--ink'),
      gridcolor: color('--grid'),
      linecolor: color('--muted'),
      zerolinecolor: color('--muted'),
      zerolinewidth: 1,
      showline: true,
      ticks: 'outside',
      ticklen: 4,
      tickcolor: color('--muted'),
      automargin: true,
    };
    if (given.type === 'log') {
      const [low, high] = given.range || [0, 1];
      const wide = high - low > 2;
      // 1, 2, 5, 10, 20, ... or whole decades, written out.
      Object.assign(base, {dtick: wide ? Math.ceil((high - low) / 6) : 'D2'});
      Object.assign(base, {tickformat: '.3~g'});
    }
    return {...base, ...given, title};
  }

  function layoutOf(given, box) {
    return {
      height: HEIGHT,
      margin: MARGIN,
      paper_bgcolor: 'rgba(0,0,0,0)',
      plot_bgcolor: 'rgba(0,0,0,0)',
      font: {
        family: getComputedStyle(document.body).fontFamily,
        size: 12,
        color: color('--ink'),
      },
      hoverlabel: {
        bgcolor: color('--panel'),
        bordercolor: color('--muted'),
        font: {color: color('--ink')},
      },
      showlegend: false,
      hovermode: 'closest',
      // A finger that scrolls the page must not zoom.
      dragmode: matchMedia('(pointer: coarse)').matches ? false : 'zoom',
      ...given,
      width: box.clientWidth,
      xaxis: axis(given.xaxis),
      yaxis: axis(given.yaxis),
    };
  }

  // Curves: one line for each method, its range over seeds, its name at the end

  function interpolate(xs, ys, x) {
    const after = xs.findIndex((value) => value >= x);
    if (after < 0 || (after === 0 && xs[0] > x)) return null;
    if (xs[after] === x) return ys[after];
    const share = (x - xs[after - 1]) / (xs[after] - xs[after - 1]);
    return ys[after - 1] + share * (ys[after] - ys[after - 1]);
  }

  function shownCurves(figure) {
    const [first] = figure.curves;
    let own = figure.curves.some((curve) => curve[options.x])
      ? options.x
      : 'steps';
    if (first.x) own = 'x';
    const base = figure.curves.find((curve) => curve.method === page.base);
    const asDifference =
      options.values === 'difference' && own !== 'x' && base && base[own];
    const curves = figure.curves
      .filter((curve) => curve[own] && !hidden.has(curve.method))
      .map((curve) => {
        const x = curve[own];
        if (!asDifference) return {...curve, x};
        const at = x.map((value) => interpolate(base[own], base.y, value));
        const less = (values) =>
          values.map((value, i) => (at[i] === null ? null : value - at[i]));
        return {
          ...curve,
          x,
          y: less(curve.y),
          low: less(curve.low),
          high: less(curve.high),
        };
      });
    return {curves, own, asDifference};
  }

  function extentOf(curves, {skip, x_label}) {
    const calm = curves.filter((curve) => !curve.diverged);
    const values = (calm.length ? calm : curves).flatMap((curve) => {
      // Not the start of training, or the ends of a line through the solution.
      const first = Math.floor(skip * curve.y.length);
      const last = curve.y.length - (x_label ? first : 0);
      return curve.y.slice(first, last).filter((value) => value !== null);
    });
    return values.length ? [Math.min(...values), Math.max(...values)] : null;
  }

  function rangeOf(extent, {include, decades}, logarithmic) {
    if (!extent) return null;
    const shown = logarithmic ? extent.map(Math.log10) : [...extent, ...include];
    let [low, high] = [Math.min(...shown), Math.max(...shown)];
    if (logarithmic && decades) low = Math.max(low, high - decades);
    const margin = 0.06 * (high - low) || 0.05 * Math.abs(high) || 0.01;
    return [low - margin, high + margin];
  }

  function endLabels(curves, range, logarithmic, box) {
    // Moves labels apart that would overlap; the order of the ends stays.
    const height = HEIGHT - MARGIN.t - MARGIN.b;
    const room = Math.floor(height / LABEL_GAP);
    const ends = curves
      .map((curve) => {
        const last = curve.y.findLastIndex((value) => value !== null);
        const value = curve.y[last];
        const level = logarithmic ? Math.log10(value) : value;
        const share = (level - range[0]) / (range[1] - range[0]);
        return {curve, y: Math.min(1, Math.max(0, share)) * height};
      })
      .filter(({y}) => Number.isFinite(y))
      .sort((a, b) => a.y - b.y);
    if (ends.length > room) return [];
    ends.forEach((end, i) => {
      if (i) end.y = Math.max(end.y, ends[i - 1].y + LABEL_GAP);
    });
    let top = height;
    for (const end of ends.reverse()) {
      end.y = Math.min(end.y, top);
      top = end.y - LABEL_GAP;
    }
    const size = box.clientWidth < 480 ? 11 : 12;
    return ends.map(({curve, y}) => ({
      xref: 'paper',
      x: 1,
      xanchor: 'left',
      xshift: 5,
      yref: 'paper',
      y: y / height,
      yanchor: 'middle',
      showarrow: false,
      text: page.styles[curve.method].text,
      font: {size, color: mixed(page.styles[curve.method].color, '--ink', 0.3)},
    }));
  }

  function marginFor(labels) {
    const longest = Math.max(0, ...labels.map(({text}) => text.length));
    return {...MARGIN, r: Math.max(MARGIN.r, 14 + 6.9 * longest)};
  }

  function drawCurves(figure, box) {
    const {curves, own, asDifference} = shownCurves(figure);
    const positive = curves.every((curve) =>
      curve.y.every((value) => value === null || value > 0),
    );
    const extent = extentOf(curves, figure);
    const may = figure.log && !figure.include.length && extent;
    const spread = may && extent[1] > SPREAD * extent[0];
    const wanted =
      options.scale === 'log' || (options.scale === 'auto' && spread);
    const logarithmic = wanted && positive && !asDifference;
    const range = rangeOf(extent, figure, logarithmic);
    const labels = range ? endLabels(curves, range, logarithmic, box) : [];
    const label = asDifference ? `${figure.label}, difference` : figure.label;
    const bands = curves
      .filter((curve) => curve.low)
      .map((curve) => band(curve, logarithmic));
    const lines = curves.map((curve) => line(curve));
    return {
      traces: [...bands, ...lines],
      layout: {
        margin: marginFor(labels),
        annotations: labels,
        xaxis: xAxis(figure, curves, own),
        yaxis: {
          title: {text: logarithmic ? `${label}, log scale` : label},
          type: logarithmic ? 'log' : 'linear',
          range: range || undefined,
        },
      },
    };
  }

  function xAxis(figure, curves, own) {
    if (own !== 'x') return {title: {text: X_LABELS[own]}, rangemode: 'tozero'};
    if (!figure.x_log) return {title: {text: figure.x_label}};
    const xs = [...new Set(curves.flatMap(({x}) => x))].sort((a, b) => a - b);
    const axis = {title: {text: `${figure.x_label}, log scale`}, type: 'log'};
    if (!xs.length) return axis;
    axis.range = [Math.log10(xs[0]) - 0.08, Math.log10(xs.at(-1)) + 0.08];
    // The values that were tried, if their labels do not overlap.
    const apart = xs.every((x, i) => !i || x >= 1.6 * xs[i - 1]);
    return xs.length <= 8 && apart ? {...axis, tickvals: xs} : axis;
  }

  function band(curve, logarithmic) {
    const kept = curve.x
      .map((x, i) => [x, curve.low[i], curve.high[i]])
      .filter(([, low]) => low !== null && (!logarithmic || low > 0));
    const back = [...kept].reverse();
    return {
      type: 'scatter',
      mode: 'lines',
      legendgroup: curve.method,
      meta: 'band',
      x: [...kept, ...back].map(([x]) => x),
      y: [...kept.map(([, low]) => low), ...back.map(([, , high]) => high)],
      fill: 'toself',
      fillcolor: color(page.styles[curve.method].color, 0.22),
      line: {width: 0},
      opacity: 0,
      hoverinfo: 'skip',
    };
  }

  function line(curve) {
    const style = page.styles[curve.method];
    const marked = curve.size || Object.keys(page.styles).length > 8;
    return {
      type: 'scatter',
      mode: marked ? 'lines+markers' : 'lines',
      legendgroup: curve.method,
      meta: 'line',
      x: curve.x,
      y: curve.y,
      line: {color: color(style.color), dash: style.dash, width: 2},
      marker: curve.size
        ? {symbol: style.symbol, size: curve.size, opacity: 1}
        : {symbol: style.symbol, size: 6, maxdisplayed: 7},
      hovertemplate: `${style.text}: %{y:.4~g} at %{x:.4~g}<extra></extra>`,
    };
  }

  // Points: value against cost, with the Pareto line

  function drawPoints(figure, box) {
    const own = options.x === 'gradients' ? 'gradients' : 'seconds';
    const points = figure.points
      .filter(({method}) => !hidden.has(method))
      .filter((point) => point[own] !== null);
    const {sign} = figure;
    const front = [];
    for (const point of [...points].sort((a, b) => a[own] - b[own])) {
      const best = front.at(-1);
      if (!best || sign * (point.y - best.y) > 0) front.push(point);
    }
    const pareto = {
      type: 'scatter',
      mode: 'lines',
      x: front.map((point) => point[own]),
      y: front.map((point) => point.y),
      line: {color: color('--muted'), dash: 'dot', width: 1.5},
      hoverinfo: 'skip',
    };
    const positions = labelPlaces(points, own, sign);
    const marks = points.map((point, i) => {
      const style = page.styles[point.method];
      return {
        type: 'scatter',
        mode: 'markers+text',
        legendgroup: point.method,
        x: [point[own]],
        y: [point.y],
        error_y: {
          type: 'data',
          array: [point.error],
          color: color(style.color),
          thickness: 1.2,
          width: 3,
        },
        marker: {size: 11, symbol: style.symbol, color: color(style.color)},
        text: style.text,
        textposition: positions[i],
        textfont: {color: mixed(style.color, '--ink', 0.3)},
        hovertemplate: `${style.text}: %{y:.4~g} at %{x:.4~g}<extra></extra>`,
      };
    });
    const xs = points.map((point) => point[own]);
    const width = Math.max(120, box.clientWidth - 230); // beside the labels
    const ys = points.flatMap(({y, error}) => [y - error, y + error]);
    const range = (values, before, after) => {
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const size = high - low || Math.abs(high) || 1;
      return [low - before * size, high + after * size];
    };
    return {
      traces: [pareto, ...marks],
      layout: {
        height: Math.max(HEIGHT, 26 * points.length),
        xaxis: {
          title: {text: X_LABELS[own]},
          range: range(xs, 70 / width, 90 / width),
        },
        yaxis: {title: {text: figure.label}, range: range(ys, 0.1, 0.14)},
      },
    };
  }

  function labelPlaces(points, own, sign) {
    // Beside each point, away from other points, labels and the Pareto line.
    const spread = (values) => {
      const low = Math.min(...values);
      const size = Math.max(...values) - low || 1;
      return values.map((value) => (value - low) / size);
    };
    const xs = spread(points.map((point) => point[own]));
    const ys = spread(points.map((point) => point.y));
    const taken = xs.map((x, i) => [x, ys[i]]);
    const [worse, better] = sign > 0 ? ['bottom', 'top'] : ['top', 'bottom'];
    const down = -0.08 * sign;
    const places = [
      [`${worse} right`, 0.1, down],
      ['middle right', 0.12, 0],
      [`${better} left`, -0.1, -down],
      ['middle left', -0.12, 0],
      [`${better} right`, 0.1, -down],
      [`${worse} left`, -0.1, down],
    ];
    return points.map((point, i) => {
      const near = ([, dx, dy]) =>
        taken.filter(
          ([x, y], j) =>
            j !== i &&
            Math.abs(x - xs[i] - dx) < 0.15 &&
            Math.abs(y - ys[i] - dy) < 0.07,
        ).length;
      const counts = places.map(near);
      const [name, dx, dy] = places[counts.indexOf(Math.min(...counts))];
      taken.push([xs[i] + dx, ys[i] + dy]);
      return name;
    });
  }

  // Rows: a value with its range for each method, and small dots for seeds

  function drawRows(figure) {
    const rows = figure.rows.filter(({method}) => !hidden.has(method));
    // The row of a diverged run may leave the axis: it would flatten others.
    const calm = rows.filter(({diverged}) => !diverged);
    const values = (calm.length ? calm : rows)
      .flatMap(({center, bar, seeds}) => [center, ...(bar || []), ...seeds])
      .concat(0);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const margin = 0.06 * (high - low) || 0.5;
    const range = [low && low - margin, high + margin];
    const texts = rows.map(({text}, y) => ({
      xref: 'paper', x: 1, xanchor: 'left', xshift: 6,
      y, text, showarrow: false,
    }));
    const arrows = rows.flatMap(({center}, y) => {
      const left = center < range[0];
      if (!left && center <= range[1]) return [];
      return {
        xref: 'paper', x: left ? 0 : 1, y, ax: left ? 24 : -24, ay: 0,
        text: '', arrowhead: 2, arrowcolor: color('--muted'),
      };
    });
    const line = {
      type: 'line', yref: 'paper', y0: 0, y1: 1, layer: 'below',
      x0: 0, x1: 0,
      line: {color: color('--ink'), width: 1.2},
    };
    return {
      traces: rows.flatMap(rowTraces),
      layout: {
        height: Math.max(260, 96 + 34 * rows.length),
        margin: marginFor(texts),
        annotations: [...texts, ...arrows],
        shapes: [line],
        xaxis: {
          title: {text: figure.label},
          range,
        },
        yaxis: {
          tickvals: rows.map((row, i) => i),
          ticktext: rows.map(({method}) => page.styles[method].text),
          range: [rows.length - 0.45, -0.55],
          showgrid: false, zeroline: false, ticks: '', fixedrange: true,
        },
      },
    };
  }

  function rowTraces(row, y) {
    const style = page.styles[row.method];
    const own = color(style.color);
    const clear = ['better', 'worse'].includes(row.verdict);
    const shared = {type: 'scatter', mode: 'markers', legendgroup: row.method};
    const main = {
      ...shared, x: [row.center], y: [y],
      marker: {
        size: 11,
        symbol: clear ? style.symbol : `${style.symbol}-open`,
        color: own, line: {width: 2, color: own},
      },
      hovertemplate: `${style.text}: ${row.text}<extra></extra>`,
    };
    if (row.bar) {
      main.error_x = {
        type: 'data', symmetric: false, color: own, width: 5,
        array: [row.bar[1] - row.center],
        arrayminus: [row.center - row.bar[0]],
        thickness: clear ? 3 : 1.4,
      };
    }
    const {seeds} = row;
    const dots = {
      ...shared, x: seeds, y: seeds.map(() => y + 0.28),
      marker: {size: 5, color: color('--muted')},
      hovertemplate: `${style.text}, one seed: %{x:.4~g}<extra></extra>`,
    };
    return seeds.length ? [main, dots] : [main];
  }

  // A plane: the loss along two directions, as contours

  function drawPlane({plane, x, y, range}, box) {
    const [low, high] = range;
    const ticks = [0, 1, 2, 3, 4].map((i) => low + (i * (high - low)) / 4);
    const log = (loss) => (loss > 0 ? Math.log10(loss) : null);
    const contour = {
      type: 'contour', x, y, customdata: plane,
      z: plane.map((losses) => losses.map(log)),
      zmin: low, zmax: high, autocontour: false,
      contours: {start: low, end: high, size: (high - low) / 14 || 0.1},
      line: {width: 0.7, color: 'rgba(255,255,255,0.45)'},
      colorscale: 'Viridis',
      colorbar: {
        title: {text: 'loss', side: 'right'}, thickness: 12,
        outlinewidth: 0, tickvals: ticks,
        ticktext: ticks.map((value) => `${+(10 ** value).toPrecision(2)}`),
      },
      hovertemplate: 'loss %{customdata:.4~g}<extra></extra>',
    };
    const solution = {
      type: 'scatter', mode: 'markers', x: [0], y: [0], hoverinfo: 'skip',
      marker: {symbol: 'cross', size: 11, color: '#fff'},
    };
    const axis = {showgrid: false, zeroline: false, constrain: 'domain'};
    return {
      traces: [contour, solution],
      layout: {
        height: Math.min(380, box.clientWidth - 50),
        xaxis: {title: {text: 'first direction'}, ...axis},
        yaxis: {title: {text: 'second direction'}, ...axis, scaleanchor: 'x'},
      },
    };
  }

  function content(figure, box) {
    const shown = figure.rows || figure.curves || figure.points;
    if (shown && shown.every(({method}) => hidden.has(method))) {
      return {traces: [], layout: {}};
    }
    if (figure.curves) return drawCurves(figure, box);
    if (figure.points) return drawPoints(figure, box);
    return figure.rows ? drawRows(figure) : drawPlane(figure, box);
  }

  return {color, content, layoutOf};
};
