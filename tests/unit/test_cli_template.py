"""Docker's templates: the forms that people type, and one sentence for all others."""

import re

import pytest

from netlib.cli.template import FreeTexts, Template
from netlib.errors import ConfigError

CONTAINER = {
    "Name": "/web",
    "State": {"Running": True, "ExitCode": 0, "Error": None},
    "Args": ["-m", "http.server"],
    "Labels": {},
    "NetworkSettings": {
        "Networks": {"web": {"IPAddress": "172.18.0.2", "Aliases": ["www"]}, "db": {"IPAddress": "172.19.0.2", "Aliases": []}},
        "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]},
    },
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("{{.Name}}", "/web"),
        ("{{ .Name }}={{.State.Running}}", "/web=true"),
        ("{{.State.Error}}", "<nil>"),
        ("{{json .State}}", '{"Running": true, "ExitCode": 0, "Error": null}'),
        ("{{json .Labels}}", "{}"),
        ("{{.Args}} {{.Labels}}", "[-m http.server] map[]"),
        ("{{len .Args}}", "2"),
        ("{{index .Args 1}}", "http.server"),
        ('{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}', "8080"),
        ("{{.Name | upper | json}}", '"/WEB"'),
        ("{{if (len .Args)}}some{{end}}", "some"),
        ('{{index .NetworkSettings.Ports "80/tcp" 0 "HostPort"}}', "8080"),
        ("{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", "172.19.0.2 172.18.0.2 "),
        ("{{range .NetworkSettings.Networks}}{{println .IPAddress}}{{end}}", "172.19.0.2\n172.18.0.2\n"),
        (
            "{{range $name, $net := .NetworkSettings.Networks}}{{$name}}={{$net.IPAddress}};{{end}}",
            "db=172.19.0.2;web=172.18.0.2;",
        ),
        ("{{range $word := .Args}}<{{$word}}>{{end}}", "<-m><http.server>"),
        ("{{range .Args}}{{.}},{{end}}", "-m,http.server,"),
        ("{{range .Labels}}x{{else}}none{{end}}", "none"),
        ("{{range .Args}}{{$.Name}}{{end}}", "/web/web"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if .State.ExitCode}}failed{{end}}", ""),
        ("{{with .State}}{{.Running}}{{end}}", "true"),
        ("a {{- .Name -}} b", "a/webb"),
        (r"{{.Name}}\t{{.State.ExitCode}}", "/web\t0"),
        ("{{upper .Name}}", "/WEB"),
        ("{{.NetworkSettings.Networks.web.Aliases}}", "[www]"),
    ],
)
def test_templates(text: str, expected: str) -> None:
    assert Template(text).render(CONTAINER) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{{.Nmae}}", "no field 'Nmae'; there are: Name, State"),
        ("{{.Name", "has no }} after it; close it"),
        ("{{}}", "empty"),
        ("{{range .Args}}", "has no {{end}}; add one"),
        ("{{end}}", "{{end}} has no {{range}}, {{if}} or {{with}} before it"),
        ("{{else}}", "leave {{else}} out"),
        ("{{range .Name}}{{end}}", "no list and no object; choose"),
        ("{{title .Name}}", "unknown word 'title'"),
        ("{{index .Args 9}}", "index: there is no 9; there are: 0 to 1"),
        ("{{json}}", "json has no argument; write one, like {{json .Name}}"),
        ("{{.Name .Args}}", "one value, or a function first"),
        ("{{$x}}", "unknown word"),
        ("{{(.Name}}", "without a closing one"),
        ("{{.Name)}}", "without an opening one"),
        ("{{len .State.ExitCode}}", "has no length"),
        ("{{@}}", "cannot read"),
    ],
)
def test_what_is_no_template_is_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        Template(text).render(CONTAINER)
    assert "\n" not in str(caught.value)


def test_of_free_names_one_that_a_row_lacks_is_empty() -> None:
    row = {"Attributes": FreeTexts({"name": "web"})}
    assert Template("{{.Attributes.name}}/{{.Attributes.exitCode}}").render(row) == "web/"
