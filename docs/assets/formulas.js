// Typesets what Markdown has marked: \(inline\) and \[displayed\] formulas.
document.querySelectorAll('.arithmatex').forEach((place) => {
  const text = place.textContent.trim();
  katex.render(text.slice(2, -2), place, {
    displayMode: text.startsWith('\\['),
    throwOnError: false,
  });
});
