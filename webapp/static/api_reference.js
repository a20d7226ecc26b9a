/* The documentation of the API, rendered from its OpenAPI document. */
"use strict";

const reference = document.getElementById("reference");

SwaggerUIBundle({
  domNode: reference,
  url: reference.dataset.document,
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayOperationId: true,
  displayRequestDuration: true,
  filter: true,
  syntaxHighlight: { activated: false }, // Its colors are inline styles, with too little contrast.
  validatorUrl: null, // Nothing is sent to another site.
});

// Its dark colors follow those of the page.
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function followTheme() {
  const { theme } = document.documentElement.dataset;
  document.documentElement.classList.toggle("dark-mode", theme ? theme === "dark" : dark.matches);
}

dark.addEventListener("change", followTheme);
document.getElementById("theme").addEventListener("change", followTheme);
followTheme();
