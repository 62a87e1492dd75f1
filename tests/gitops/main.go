// What GitOps tools make of an object: kstatus, which Flux and `helm --wait` ask, and a health check of Argo CD.
//
// Reads one object (JSON) from stdin and prints {"kstatus": {"status", "message"}, "argo": {"status", "message"}}.
// The only argument, if there is one, is a Lua script as Argo CD takes it: it reads `obj` and returns `hs`.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

// Verdict is what one tool says of an object.
type Verdict struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	object := &unstructured.Unstructured{}
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	if err := object.UnmarshalJSON(text); err != nil { // integers stay integers here
		return fmt.Errorf("stdin is not an object in JSON: %w", err)
	}
	result, err := status.Compute(object)
	if err != nil {
		return fmt.Errorf("kstatus: %w", err)
	}
	verdicts := map[string]Verdict{"kstatus": {string(result.Status), result.Message}}
	if len(os.Args) > 1 {
		if verdicts["argo"], err = health(os.Args[1], object.Object); err != nil {
			return fmt.Errorf("%s: %w", os.Args[1], err)
		}
	}
	return json.NewEncoder(os.Stdout).Encode(verdicts)
}

// health runs a script with the libraries that Argo CD opens for it.
func health(script string, object map[string]any) (Verdict, error) {
	source, err := os.ReadFile(script)
	if err != nil {
		return Verdict{}, err
	}
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range []struct {
		name string
		open lua.LGFunction
	}{{lua.LoadLibName, lua.OpenPackage}, {lua.BaseLibName, lua.OpenBase}, {lua.TabLibName, lua.OpenTable}, {lua.StringLibName, lua.OpenString}} {
		if err := state.CallByParam(lua.P{Fn: state.NewFunction(library.open), Protect: true}, lua.LString(library.name)); err != nil {
			return Verdict{}, err
		}
	}
	state.SetGlobal("obj", value(state, object))
	if err := state.DoString(string(source)); err != nil {
		return Verdict{}, err
	}
	hs, is := state.Get(-1).(*lua.LTable)
	if !is {
		return Verdict{}, fmt.Errorf("the script returns no table")
	}
	return Verdict{lua.LVAsString(hs.RawGetString("status")), lua.LVAsString(hs.RawGetString("message"))}, nil
}

func value(state *lua.LState, from any) lua.LValue {
	switch v := from.(type) {
	case map[string]any:
		table := state.NewTable()
		for key, item := range v {
			table.RawSetString(key, value(state, item))
		}
		return table
	case []any:
		table := state.NewTable()
		for _, item := range v {
			table.Append(value(state, item))
		}
		return table
	case string:
		return lua.LString(v)
	case bool:
		return lua.LBool(v)
	case float64:
		return lua.LNumber(v)
	case int64:
		return lua.LNumber(v)
	}
	return lua.LNil
}
