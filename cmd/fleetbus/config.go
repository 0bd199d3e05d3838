package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/internal/config"
)

func newConfigCommand(a *app) *cobra.Command {
	imports := noun("import", "Translate the configuration of another product",
		newConfigImport(a, "bindplane", "Translate the event bus of a BindPlane server's configuration", "config.yaml", config.ImportBindplane),
		newConfigImport(a, "choria", "Translate the configuration of a Choria broker", "broker.conf", config.ImportChoria))
	return noun("config", "The configuration of a server: a file, variables and flags",
		newConfigCheck(a), newConfigShow(a), newConfigDefaults(a), newConfigSchema(a), imports)
}

// configFlags gives cmd a flag for every key of the configuration and --config.
func configFlags(cmd *cobra.Command) *string {
	config.AddFlags(cmd.Flags())
	return cmd.Flags().String("config", "", "configuration `file` (FLEETBUS_CONFIG; default /etc/fleetbus/fleetbus.yaml, or fleetbus.yaml in the data directory)")
}

// loadConfig reads the configuration that a server started with the flags of cmd
// would have. file is its name, empty if there is none.
func (a *app) loadConfig(cmd *cobra.Command, explicit string) (c *config.Config, file string, err error) {
	dir := cmd.Flags().Lookup("data-dir").Value.String()
	if dir == "" {
		// Without a home there is no file in it either.
		dir, _ = a.dataDir()
	}
	file = config.FindFile(explicit, a.getenv("FLEETBUS_CONFIG"), dir)
	c, err = config.Load(config.Sources{File: file, Env: a.env, Flags: cmd.Flags()})
	return c, file, err
}

// checked is the result of config check.
type checked struct {
	File     string           `json:"file"`
	OK       bool             `json:"ok"`
	Problems []checkedProblem `json:"problems"`
	Warnings []string         `json:"warnings"`
}

type checkedProblem struct {
	Place string `json:"place"`
	Key   string `json:"key,omitempty"`
	Text  string `json:"text"`
	Fix   string `json:"fix,omitempty"`
}

func newConfigCheck(a *app) *cobra.Command {
	var explicit *string
	cmd := &cobra.Command{
		Use: "check [FILE]", Args: takes("[FILE]"), Annotations: reads(),
		Short: "Report every problem of the configuration, each with its place",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				*explicit = args[0]
			}
			c, file, err := a.loadConfig(cmd, *explicit)
			result := checked{File: file, OK: err == nil}
			var problems *config.ProblemList
			switch {
			case errors.As(err, &problems):
				for _, p := range problems.Problems {
					result.Problems = append(result.Problems, checkedProblem{p.Place.String(), p.Key, p.Text, p.Fix})
				}
			case err != nil:
				return err
			default:
				result.Warnings = c.Warnings()
				a.warn(c)
			}
			// For people the error says it all.
			if !result.OK && a.format == formatTable {
				return err
			}
			return errors.Join(a.show(report{value: result, text: func(p *page) {
				p.line("ok: %s", or(file, "no file; the defaults"))
			}}), err)
		},
	}
	explicit = configFlags(cmd)
	return a.output(cmd)
}

// warn tells of what was ignored.
func (a *app) warn(c *config.Config) {
	for _, w := range c.Warnings() {
		a.hint("warning: %s", w)
	}
}

func newConfigShow(a *app) *cobra.Command {
	var explicit *string
	cmd := &cobra.Command{
		Use: "show", Aliases: []string{"get", "info"}, Args: takes(), Annotations: reads(),
		Short: "Show the effective value of every key and where it comes from",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.loadConfig(cmd, *explicit)
			if err != nil {
				return err
			}
			a.warn(c)
			return a.show(list(c.Show(),
				column[config.Setting]{"KEY", func(s config.Setting) string { return s.Key }},
				column[config.Setting]{"VALUE", func(s config.Setting) string { return s.Value }},
				column[config.Setting]{"SOURCE", func(s config.Setting) string { return s.Source }},
			))
		},
	}
	explicit = configFlags(cmd)
	return a.output(cmd)
}

func newConfigDefaults(a *app) *cobra.Command {
	var minimal bool
	cmd := &cobra.Command{
		Use: "defaults", Args: takes(), Annotations: prints(),
		Short: "Print a configuration file with every key, its default and what it does",
		RunE:  func(*cobra.Command, []string) error { return a.print(config.Defaults(minimal)) },
	}
	cmd.Flags().BoolVar(&minimal, "minimal", false, "only the keys that a node of a cluster needs")
	return cmd
}

func newConfigSchema(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "schema", Args: takes(), Annotations: prints(),
		Short: "Print the JSON Schema of the configuration file, for editors",
		RunE:  func(*cobra.Command, []string) error { return a.print(config.Schema()) },
	}
}

// print writes a document to stdout as it is.
func (a *app) print(document []byte) error {
	if _, err := a.stdout.Write(document); err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	return nil
}

// newConfigImport makes the command that translates the file of another product.
func newConfigImport(a *app, product, short, example string, translate func([]byte) (ours []byte, notes []string, err error)) *cobra.Command {
	return &cobra.Command{
		Use: product + " FILE|-", Args: takes("FILE|-"), Annotations: prints(),
		Short:   short,
		Example: "  fleetbus config import " + product + " " + example + " > fleetbus.yaml",
		RunE: func(_ *cobra.Command, args []string) error {
			what := fmt.Sprintf("importing %q", args[0])
			var data []byte
			var err error
			if args[0] == "-" {
				data, err = a.payload(args)
			} else {
				data, err = os.ReadFile(args[0])
			}
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			file, notes, err := translate(data)
			for _, n := range notes {
				a.hint("note: %s", n)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return a.print(file)
		},
	}
}
