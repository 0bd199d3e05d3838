package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/config"
)

func newConfigCommand(a *command.App) *cobra.Command {
	imports := command.Noun("import", "Translate the configuration of another product",
		newConfigImport(a, "bindplane", "Translate the event bus of a BindPlane server's configuration", "config.yaml", config.ImportBindplane),
		newConfigImport(a, "choria", "Translate the configuration of a Choria broker", "broker.conf", config.ImportChoria))
	return command.Noun("config", "The configuration of a server: a file, variables and flags",
		newConfigCheck(a), newConfigShow(a), newConfigDefaults(a), newConfigSchema(a), imports)
}

// configFlags gives cmd a flag for every key of the configuration and --config.
func configFlags(cmd *cobra.Command) *string {
	config.AddFlags(cmd.Flags())
	return cmd.Flags().String("config", "", "configuration `file` (FLEETBUS_CONFIG; default /etc/fleetbus/fleetbus.yaml, or fleetbus.yaml in the data directory)")
}

// loadConfig reads the configuration that a server started with the flags of cmd
// would have. file is its name, empty if there is none.
func loadConfig(a *command.App, cmd *cobra.Command, explicit string) (c *config.Config, file string, err error) {
	dir := cmd.Flags().Lookup("data-dir").Value.String()
	if dir == "" {
		// Without a home there is no file in it either.
		dir, _ = a.DataDir()
	}
	file = config.FindFile(explicit, a.Getenv("FLEETBUS_CONFIG"), dir)
	c, err = config.Load(config.Sources{File: file, Env: a.Env, Flags: cmd.Flags()})
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

func newConfigCheck(a *command.App) *cobra.Command {
	var explicit *string
	cmd := &cobra.Command{
		Use: "check [FILE]", Args: command.Takes("[FILE]"), Annotations: command.Reads(),
		Short: "Report every problem of the configuration, each with its place",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				*explicit = args[0]
			}
			c, file, err := loadConfig(a, cmd, *explicit)
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
				warn(a, c)
			}
			// For people the error says it all.
			if !result.OK && a.Format == command.FormatTable {
				return err
			}
			return errors.Join(a.Show(command.Report{Value: result, Text: func(p *command.Page) {
				p.Line("ok: %s", cmp.Or(file, "no file; the defaults"))
			}}), err)
		},
	}
	explicit = configFlags(cmd)
	return a.Output(cmd)
}

// warn tells of what was ignored.
func warn(a *command.App, c *config.Config) {
	for _, w := range c.Warnings() {
		a.Hint("warning: %s", w)
	}
}

func newConfigShow(a *command.App) *cobra.Command {
	var explicit *string
	cmd := &cobra.Command{
		Use: "show", Aliases: []string{"get", "info"}, Args: command.Takes(), Annotations: command.Reads(),
		Short: "Show the effective value of every key and where it comes from",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := loadConfig(a, cmd, *explicit)
			if err != nil {
				return err
			}
			warn(a, c)
			return a.Show(command.List(c.Show(),
				command.Col("KEY", func(s config.Setting) string { return s.Key }),
				command.Col("VALUE", func(s config.Setting) string { return s.Value }),
				command.Col("SOURCE", func(s config.Setting) string { return s.Source }),
			))
		},
	}
	explicit = configFlags(cmd)
	return a.Output(cmd)
}

func newConfigDefaults(a *command.App) *cobra.Command {
	var minimal bool
	cmd := &cobra.Command{
		Use: "defaults", Args: command.Takes(), Annotations: command.Prints(),
		Short: "Print a configuration file with every key, its default and what it does",
		RunE:  func(*cobra.Command, []string) error { return a.Print(config.Defaults(minimal)) },
	}
	cmd.Flags().BoolVar(&minimal, "minimal", false, "only the keys that a node of a cluster needs")
	return cmd
}

func newConfigSchema(a *command.App) *cobra.Command {
	return &cobra.Command{
		Use: "schema", Args: command.Takes(), Annotations: command.Prints(),
		Short: "Print the JSON Schema of the configuration file, for editors",
		RunE:  func(*cobra.Command, []string) error { return a.Print(config.Schema()) },
	}
}

// newConfigImport makes the command that translates the file of another product.
func newConfigImport(a *command.App, product, short, example string, translate func([]byte) (ours []byte, notes []string, err error)) *cobra.Command {
	return &cobra.Command{
		Use: product + " FILE|-", Args: command.Takes("FILE|-"), Annotations: command.Prints(),
		Short:   short,
		Example: "  fleetbus config import " + product + " " + example + " > fleetbus.yaml",
		RunE: func(_ *cobra.Command, args []string) error {
			what := fmt.Sprintf("importing %q", args[0])
			var data []byte
			var err error
			if args[0] == "-" {
				data, err = a.Payload(args)
			} else {
				data, err = os.ReadFile(args[0])
			}
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			file, notes, err := translate(data)
			for _, n := range notes {
				a.Hint("note: %s", n)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return a.Print(file)
		},
	}
}
