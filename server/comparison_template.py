"""The page of a comparison: a Jinja template in the report's style. Nothing in it loads anything.

A Python module because Flower's app bundles carry no HTML.
"""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:">
<title>{{ name }} – layerweld</title>
<style>
:root { {% for key, value in light.items() %}--{{ key }}: {{ value }}; {% endfor %} }
@media screen and (prefers-color-scheme: dark) {
  :root { {% for key, value in dark.items() %}--{{ key }}: {{ value }}; {% endfor %} }
}
{{ style }}
</style>
</head>
<body>
<main>
<header>
  <p class="eyebrow">layerweld · comparison</p>
  <h1>{{ name }}</h1>
  <p class="verdict">{{ verdict }}</p>
  <p class="caveat">{{ notes }}</p>
</header>
<section id="charts-section">
  <h2>Accuracy and cost</h2>
  {% for figure in figures %}{{ figure }}{% endfor %}
</section>
{% for title, head, rows in tables %}
<section>
  <h2>{{ title }}</h2>
  <div class="scroll" tabindex="0" role="region" aria-label="{{ title }}">
  <table><thead><tr>
    {% for cell in head %}<th scope="col"
      {%- if not loop.first %} class="number"{% endif %}>{{ cell }}</th>{% endfor %}
  </tr></thead><tbody>
    {% for row in rows %}<tr>
      {% for cell in row %}{% if loop.first %}<th scope="row">{{ cell }}</th>
      {% else %}<td class="number">{{ cell }}</td>{% endif %}{% endfor %}
    </tr>{% endfor %}
  </tbody></table></div>
</section>
{% endfor %}
{% if refused %}
<section id="refused">
  <h2>Left out</h2>
  <ul>{% for line in refused %}<li>{{ line }}</li>{% endfor %}</ul>
</section>
{% endif %}
</main>
<noscript><p class="empty">The charts need JavaScript; the tables have the same numbers.</p>
</noscript>
<script>{{ plotly }}</script>
<script type="application/json" id="charts">{{ charts }}</script>
<script>{{ script }}</script>
</body>
</html>
"""
